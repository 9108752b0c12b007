"""What is kept on disk: checkpoints and workdirs."""
