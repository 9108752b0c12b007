import pytest

from vit_jax import xla_env as cpu

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def test_virtual_devices_get_threads_for_collectives_that_wait_for_each_other():
    assert int(cpu.missing_variables(EIGHT)["NPROC"]) >= 64


@pytest.mark.parametrize(
    "environment", [{}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, EIGHT | {"NPROC": "3"}]
)
def test_one_device_and_a_chosen_number_of_threads_are_left_alone(environment):
    assert "NPROC" not in cpu.missing_variables(environment)


def test_huge_pages_are_asked_for_and_a_choice_of_tunables_is_left_alone():
    assert cpu.missing_variables({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert cpu.missing_variables({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) == {}


def test_other_programs_start_without_what_was_added():
    added = cpu.missing_variables(EIGHT)
    assert cpu.user_environment(EIGHT | added | {cpu.ADDED: ",".join(added)}) == EIGHT
    assert cpu.user_environment(EIGHT | added) == EIGHT | added


def test_a_process_that_has_all_is_not_started_again():
    assert cpu.missing_variables(EIGHT | cpu.missing_variables(EIGHT)) == {}
