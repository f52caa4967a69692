#!/usr/bin/env bash
# Sourced. What to put before the commands of training and decoding, to hand them to a cluster; empty runs them here.
# Slurm: train_cmd="srun --gres=gpu:1 --cpus-per-task=8"
export train_cmd=""
export decode_cmd=""
