"""Launch runs on rented machines: TPU VMs through gcloud, and GPU nodes through Slurm."""
