#!/usr/bin/env bash
# Sourced. What to put before the commands of training and decoding, to hand them to a cluster; empty runs them here.
# Slurm: train_cmd="srun --gres=gpu:1 --cpus-per-task=8"
# With --num_nodes, ESPnet's launcher takes it as its --cmd: Kaldi's "slurm.pl --config conf/slurm.conf" for example.
# Empty then runs in the allocation that is there (utils/slurm.pl).
export train_cmd=""
export decode_cmd=""
