#!/bin/bash
# Made by `atom train launcher=slurm`. `sbatch` of this file, with a run folder and a step, evaluates
# the checkpoint of that step. The run's job submits it when the checkpoint is complete.
@options@

@environment@
@before@
exec @command@ "$1" "$2"
