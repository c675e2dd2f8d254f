# GNU make reads GNUmakefile. Another make reads this file, and says so, whatever the goal.
.BEGIN:
	@echo 'train_gpt2_rl needs GNU make, and this is another make; run gmake instead' >&2; exit 1

all:
	@echo 'train_gpt2_rl needs GNU make, and this is another make; run gmake instead' >&2; exit 1
