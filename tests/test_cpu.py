import pytest

from vit_jax import cpu

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def test_virtual_devices_get_threads_for_collectives_that_wait_for_each_other():
    assert int(cpu.missing(EIGHT)["NPROC"]) >= 64


@pytest.mark.parametrize("environment", [{}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, EIGHT | {"NPROC": "3"}])
def test_one_device_and_a_chosen_number_of_threads_are_left_alone(environment):
    assert "NPROC" not in cpu.missing(environment)


def test_huge_pages_join_other_tunables_and_leave_a_choice_alone():
    assert cpu.missing({"GLIBC_TUNABLES": "glibc.pthread.rseq=1"}) == {
        "GLIBC_TUNABLES": "glibc.pthread.rseq=1:glibc.malloc.hugetlb=1"
    }
    assert cpu.missing({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) == {}


def test_a_process_that_has_all_is_not_started_again():
    assert cpu.missing(EIGHT | cpu.missing(EIGHT)) == {}
