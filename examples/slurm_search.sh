#!/bin/bash
# A search by 64 workers of a Slurm array, each on one GPU: `sbatch examples/slurm_search.sh`. The same again goes on.
#
# The workers meet in a database that all nodes reach, and are begun, killed and preempted in any order. Fewer may run
# than there are: the array's numbers say who proposes which cells, and each must keep its own.
#SBATCH --job-name=dpc-search
#SBATCH --array=0-63
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60  # to this script itself, a minute before its time is up

set -euo pipefail

: "${STORAGE:=postgresql+psycopg://search@database.example.org/search}"
: "${CACHE:=/shared/features/cityscapes}"  # or a URL: each node then makes a copy of it for itself
: "${TRIALS:=28000}"

# `exec`, so that Slurm's signal reaches the worker: it gives up its trial at once, and another runs it again.
exec dpc search worker dpc \
  --objective proxy --cache "$CACHE" --device cuda \
  --trials "$TRIALS" --seed 1 --first aspp \
  --storage "$STORAGE" --workers 64  # --index is SLURM_ARRAY_TASK_ID
