"""What others see: the log and the scoreboard."""
