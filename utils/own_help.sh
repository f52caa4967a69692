#!/usr/bin/env bash
# Sourced. With --help or -h among the arguments, print the comment at the head of the script that runs, and end.

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,/^[^#]/s/^# //p' "$0"
    exit
fi
