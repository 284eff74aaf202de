#!/bin/bash
# Made by `atom train launcher=slurm`. `sbatch` of this file goes on with the run where it stopped.
@options@

# The run was composed when it was submitted: every rank reads $folder/run.yaml.
@folder@
nodes=@nodes@

@environment@
[[ -n ${SLURM_CPUS_PER_TASK:-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# $task: one task a node, on the nodes named first. It may be told to stop before it listens.
on_nodes() {
  local names=$1
  shift
  task=(srun --nodes="$(wc -w <<< "$names")" --ntasks="$(wc -w <<< "$names")"
    --ntasks-per-node=1 --cpu-bind=none --nodelist="$(tr ' ' , <<< "$names")" @srun@
    bash -c "$begin" task "$@")
}
begin=@begin@

# The nodes of this job that are still there, less those that fail a check: $good. The others are
# kept in a file, for the jobs to come.
excluded=$folder/excluded_nodes.txt
look_at_nodes() {
  good=$(scontrol show hostnames "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N)" | xargs)
  @check@ || return 0
  look @python@ -P -m atom.launch.health --gpus @gpus@ --disk @disk@ "$folder" /tmp
  @links@ && (($(wc -w <<< "$good") > 1)) || return 0
  look @python@ -P -m atom.launch.links --gpus @gpus@ --least @least@ $(addresses "$good")
}
look() {
  local all=$good found
  on_nodes "$all" "$@"
  found=$("${task[@]}")
  grep -v ' ok$' <<< "$found"
  good=$(sed -n 's/^atom-[a-z]* \(.*\) ok$/\1/p' <<< "$found" | sort -V | xargs)
  for name in $all; do
    [[ " $good " == *" $name "* ]] || echo "$name" >> "$excluded"
  done
}
addresses() {
  scontrol --oneliner show node "$(tr ' ' , <<< "$1")" |
    sed 's/.*NodeName=\([^ ]*\).*NodeAddr=\([^ ]*\).*/\1=\2/'
}

# Another job goes on: this one anew, or where Slurm does not requeue, a copy of it.
next_job() {
  scontrol requeue "$SLURM_JOB_ID" && exit 75
  another_job
}
another_job() {
  local options=(--dependency="afterany:$SLURM_JOB_ID")
  [[ -s $excluded ]] && options+=(--exclude="$(sort -u "$excluded" | paste -sd ,)")
  [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && options+=(--array="$SLURM_ARRAY_TASK_ID")
  sbatch "${options[@]}" @script@ && exit 75
  exit 1
}

# Slurm's warning before the time limit is for the ranks, and comes to this script, for there may
# be none yet. `scancel --signal=USR1 JOB` goes to the ranks at once.
step=
stop=
ask_to_stop() {
  stop=yes
  [[ -n $step ]] || return
  # Again and again, for a task that has just begun may not listen yet.
  while kill -USR1 "$step" 2> /dev/null; do sleep 5; done &
}
trap ask_to_stop USR1

for ((attempt = 1; ; attempt++)); do
  look_at_nodes
  [[ -n $stop ]] && next_job
  if (($(wc -w <<< "$good") < nodes)); then
    echo "atom: too few nodes of this job are well: another job asks for others"
    another_job
  fi
  names=$(cut -d ' ' -f "-$nodes" <<< "$good")
  address=$(addresses "${names%% *}" | sed 's/.*=//')
  port=$((16384 + (SLURM_JOB_ID * 16 + attempt) % 16384))
  on_nodes "$names" @node@ "$folder" --nodes "$nodes" --endpoint "$address:$port" \
    --attempt "$attempt"
  # A node that fails ends the others: they would wait for it.
  SLURM_KILL_BAD_EXIT=1 "${task[@]}" &
  step=$!
  wait "$step"
  code=$?
  # A signal to this script ends the waiting, not the step.
  while kill -0 "$step" 2> /dev/null; do
    wait "$step"
    code=$?
  done
  step=
  on_nodes "${names%% *}" @python@ -P -m atom.launch.verdict "$folder" "$code"
  "${task[@]}"
  case $? in
    0) exit 0 ;;
    75) next_job ;;
    76) ;;
    *) exit 1 ;;
  esac
done
