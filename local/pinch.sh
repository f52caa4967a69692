#!/usr/bin/env bash
# Sourced by a recipe's run.sh: the stages. run.sh sets what differs from recipe to recipe:
#   train_set, valid_set, test_sets    names of sets in data/; test_sets are decoded and scored
#   upstream                           what --upstream is where it is not given
#   data_paths                         options of the recipe's local/data.sh, which name files or folders; "ways" among
#                                      them stands for those of the ways in that all recipes share
#   way_sets                           may be set: the three sets where the corpus comes by one of these ways
#   called_from                        the folder that the user stands in
: "${train_set?}" "${valid_set?}" "${test_sets?}" "${upstream?}" "${data_paths?}" "${called_from:?}"

help_message=$(cat <<'HELP'
Usage: ./run.sh [--stage N] [--stop_stage N] [options]        ("-" and "_" alike in option names)

Stages: 0 fetch corpus and upstream, 1 data directories, 2 token list and dump, 3 nothing, 4 train, 5 decode, 6 score;
7 export (only with --stop_stage 7).

What to run
  --task TASK              asr: recognise speech; classify: a label for each utterance, its whole transcript,
                           with the YAMLs in conf/classify                                        [asr]
  --upstream NAME          conf/NAME.yaml: wav2vec2_base, hubert_large, wavlm_base_plus, mini, micro
                                                                                                  [UPSTREAM_HELP]
  --method NAME            pinch, ump, mixed_sparsity, nas_cp, l0, dense or one of your own, instead of the YAML's
  --target_sparsity X      0.65 prunes 65 % of the gated weights, instead of the YAML's target; of pinch several, "0.5 0.65"
  --target_macs X          0.5 saves half of the model's multiplications (structured units), instead of the YAML's target
  --unit U                 of pinch: weight, or structured (whole heads and channels), instead of the YAML's
  --conv true              of structured units and l0: the convolutions' filters too, instead of the YAML's
  --bits B                 of the kept weights, rounded while they are trained: 8, 4, 3, 2, ternary, mixed, or none for
                           weights that are not rounded, instead of the YAML's (none)
  --average_bits X         of mixed bits: their average, such as 3.5, instead of the YAML's
  --layer_sparsities RUN   of mixed_sparsity: the finished run to take them from      [asr_UPSTREAM_pinch_TARGET]
Stages
  --stage N, --stop_stage N                                                                       [0, 6]
  --skip_data_prep, --skip_train, --skip_eval true         leave out stages 0-3, 4, 5-6
Machine
  --ngpu N                 GPUs to train on, of each node                                         [0]
  --num_nodes N            nodes to train on: run inside a Slurm allocation, or set train_cmd in cmd.sh   [1]
  --gpu_inference true     decode on a GPU                                                        [false]
  --nj N                   jobs of data preparation                                               [4]
  --inference_nj N         jobs of beam search                                                    [1]
  --python PROGRAM                                                                                [python3]
The corpus of this recipe
DATA_HELP
Data
  --text "STEPS"           steps over all transcripts, instead of the YAML's (docs/data.md has them)      [none]
  --audio_format F         flac leaves the audio where stage 1 has it, flac.ark packs all of it   [flac]
  --unknown_characters P   error, drop, unknown or extend: what becomes of characters of the training set that the
                           upstream's vocabulary lacks, instead of the YAML's                     [error]
  --token_type T           char, or bpe: subwords of the training transcripts (sentencepiece), for an upstream without a
                           CTC head; one that has a head keeps its own vocabulary                 [char]
  --nbpe N                 number of subwords, of bpe                                             [30]
  --train_set, --valid_set NAME, --test_sets "NAMES"       of the data directories      [the recipe's own]
  --min_wav_duration, --max_wav_duration SECONDS           of training utterances                 [0.1, 30]
  --dumpdir DIR, --expdir DIR                                                                     [dump, exp]
Training
  --asr_config FILE        instead of conf/UPSTREAM.yaml
  --baseline_config FILE   instead of conf/UPSTREAM_baseline.yaml
  --asr_args "ARGS"        more options of ESPnet's asr_train for the one-pass run (the tag changes with them)
  --baseline_args "ARGS"   the same for the dense baseline
  --asr_tag TAG            the run's folder is asr_TAG
  --asr_exp DIR            the run's folder
Decoding
  --inference_config FILE  ESPnet's beam search with this YAML; without it, batched CTC greedy search
  --lm FILE                n-gram model of words (ARPA): prefix beam search instead of greedy search
  --inference_args "ARGS"  more options of asr_decode (--lm_weight, --word_score, --beam_size, --hotwords,
                           --hotword_score), or of ESPnet's asr_inference
  --inference_batch_size N utterances decoded together by greedy search                           [8]
  --inference_asr_model F  checkpoint to decode   [valid.wer_on_target.ave.pth, of classify valid.error_on_target.ave.pth]
Scoring
  --error_rate R           which comes first: wer, cer, or auto: cer where the script writes no spaces    [auto]
Export
  --export_args "ARGS"     options of espnet_pinch.bin.export: --formats, --values, --wer                 [--wer]
Other
  --config FILE            source a file that sets these options ("stage=4")

Relative paths are as seen from where you stand, "~" is your home; in the YAML files, from this recipe's folder.
HELP
)

options="task stage stop_stage skip_data_prep skip_train skip_eval ngpu num_nodes gpu_inference nj inference_nj python
 upstream method target_sparsity target_macs unit conv bits average_bits layer_sparsities audio_format
 min_wav_duration max_wav_duration unknown_characters text token_type nbpe dumpdir expdir asr_config baseline_config asr_args
 baseline_args asr_tag asr_exp inference_config lm inference_args inference_batch_size inference_asr_model error_rate
 export_args train_set valid_set test_sets print_exp"
options=${options//$'\n'/}
task=asr
stage=0
stop_stage=6
skip_data_prep=false
skip_train=false
skip_eval=false
ngpu=0
num_nodes=1
gpu_inference=false
nj=4
inference_nj=1
python=python3
method=
target_sparsity=
target_macs=
unit=
conv=
bits=
average_bits=
layer_sparsities=
audio_format=flac
min_wav_duration=0.1
max_wav_duration=30
unknown_characters=
text=
token_type=char
nbpe=
dumpdir=
expdir=
asr_config=
baseline_config=
asr_args=
baseline_args=
asr_tag=
asr_exp=
inference_config=
lm=
inference_args=
inference_batch_size=8
inference_asr_model=
error_rate=auto
export_args=--wer
print_exp=false # only print the folder of the corpus' experiments, for the sweeps

recipe_sets=("${train_set}" "${valid_set}" "${test_sets}")
train_set=
valid_set=
test_sets=

. ./path.sh
. ./cmd.sh
. utils/step.sh
. utils/ways.sh
ways=
way_settings=
if [[ " ${data_paths} " == *" ways "* ]]; then
    python=$(option_of python "${python}" "$@")
    [[ ${python} != */* ]] || python=$(realpath -ms -- "$(seen_from "${called_from}" "${python}")")
    read_ways "$@" --python "${python}"
    data_paths=${data_paths/ways/${ways}}
fi
for name in ${data_paths}; do
    printf -v "${name}" '%s' ""
done
options+=" ${data_paths}"
command_line=$(printf '%q ' ./run.sh "$@")
command_line=${command_line% }
[ -f local/data.sh ] || die "local/data.sh is missing: egs/TEMPLATE/setup.sh $(basename "${PWD}") makes one"
case " $* " in
    *" --help "* | *" -h "*)
        help_message=${help_message/DATA_HELP/$(bash -p local/data.sh --python "${python}" --help)}
        help_message=${help_message/UPSTREAM_HELP/${upstream}}
        ;;
esac
. utils/parse_options.sh

# ---- What to run, checked before anything is done

if [ -n "${way_sets:-}" ] && [ -n "$(given_ways)" ]; then
    read -r train valid test <<<"${way_sets}"
    recipe_sets=("${train}" "${valid}" "${valid} ${test}")
fi
train_set=${train_set:-${recipe_sets[0]}}
valid_set=${valid_set:-${recipe_sets[1]}}
test_sets=${test_sets:-${recipe_sets[2]}}
for name in train_set valid_set test_sets upstream; do
    [[ ${!name} =~ [^[:space:]] ]] || die "run.sh must set ${name}, or give --${name}"
done
for number in stage stop_stage ngpu num_nodes nj inference_nj inference_batch_size; do
    [[ ${!number} =~ ^[0-9]+$ ]] || die "--${number} must be a whole number, not '${!number}'"
done
for switch in skip_data_prep skip_train skip_eval gpu_inference print_exp; do
    [[ ${!switch} =~ ^(true|false)$ ]] || die "--${switch} must be true or false, not '${!switch}'"
done
for name in ${data_paths} dumpdir expdir asr_exp asr_config baseline_config inference_config lm layer_sparsities; do
    [[ ${!name} != *$'\n'* ]] || die "--${name} must not have a new line: '${!name}'"
    [ -z "${!name}" ] || printf -v "${name}" '%s' "$(seen_from "${called_from}" "${!name}")"
done
dumpdir=${dumpdir:-dump}
expdir=${expdir:-exp}
[[ ${python} != */* ]] || python=$(realpath -ms -- "$(seen_from "${called_from}" "${python}")")
for name in dumpdir expdir asr_exp asr_tag; do
    # ESPnet's options split at commas, its --frontend_conf reads YAML, kaldiio reads brackets and bars.
    [[ ${!name} != *[,#:\|\[\]\{\}\"\'$'\n']* ]] ||
        die "--${name} must not have any of , # : | [ ] { } \" ' or a new line, which ESPnet reads as its own: '${!name}'"
done
command -v "${python}" >/dev/null || die "${python} not found; run make venv in the repository, or give --python"

case ${task} in
    asr) conf=conf own="" prepare_dump=prepare_dump token_list=char rate=wer ;;
    classify) conf=conf/classify own=/classify prepare_dump=prepare_labels token_list=label rate=error ;;
    *) die "--task must be asr or classify, not '${task}'" ;;
esac
inference_asr_model=${inference_asr_model:-valid.${rate}_on_target.ave.pth}
asr_config=${asr_config:-${conf}/${upstream}.yaml}
known=$(cd "${conf}" 2>/dev/null && echo *.yaml | tr ' ' '\n' | grep -Ev '_baseline|^decode' | sed 's/\.yaml//' | tr '\n' ' ') || known=none
[ -f "${asr_config}" ] || die "unknown upstream '${upstream}': ${asr_config} does not exist; there is: ${known% }"
if [ -z "${baseline_config}" ] && [ -f "${conf}/${upstream}_baseline.yaml" ]; then
    baseline_config=${conf}/${upstream}_baseline.yaml
fi
for file in "${baseline_config}" "${inference_config}" "${lm}"; do
    [ -z "${file}" ] || [ -f "${file}" ] || die "${file} does not exist"
done
[[ ${error_rate} =~ ^(auto|wer|cer)$ ]] || die "--error_rate must be auto, wer or cer, not '${error_rate}'"
if [ "${task}" = classify ]; then
    [ -z "${lm}${inference_config}" ] || die "--lm and --inference_config are for speech recognition, not for --task classify"
    [ -z "${unknown_characters}" ] || die "--unknown_characters is for speech recognition, not for --task classify"
    [ "${error_rate}" = auto ] || die "--error_rate is for speech recognition; --task classify counts utterances"
    [ "${token_type}" = char ] || die "--token_type is for speech recognition, not for --task classify"
fi
[[ ${token_type} =~ ^(char|bpe)$ ]] || die "--token_type must be char or bpe, not '${token_type}'"
[ -z "${nbpe}" ] || [ "${token_type}" = bpe ] || die "--nbpe needs --token_type bpe"
nbpe=${nbpe:-30}
[[ ${nbpe} =~ ^[1-9][0-9]{0,8}$ ]] || die "--nbpe must be a whole number over 0, not '${nbpe}'"
if [ "${token_type}" = bpe ] && [ -z "${baseline_config}" ]; then
    log "note: ${upstream} is its own baseline, so it has a CTC head: it keeps its own vocabulary, not bpe"
    token_type=char
fi
subwords= # of the names of the dump and of the runs
[ "${token_type}" = char ] || subwords=_bpe${nbpe}
[ -z "${lm}" ] || [ -z "${inference_config}" ] ||
    die "--lm is for our own search, and --inference_config for ESPnet's: give one of them"
[[ " ${inference_args} " != *" --lm"[\ =]* ]] || [ -n "${inference_config}" ] ||
    die "the language model is an option of its own, not one of --inference_args: --lm FILE"

# The corpus is the recipe's, or that of what its own options name; data/, dump/ and exp/ have a folder for each.
corpus=$(basename "${PWD}")
data_options=()
for name in ${data_paths}; do
    [ -n "${!name}" ] || continue
    [ -e "${!name}" ] || die "--${name}: ${!name} does not exist"
    data_options+=("--${name}" "$(realpath -s -- "${!name}")")
done
if [ -n "$(given_ways)" ]; then
    [ ${#data_options[@]} -le 2 ] || die "give the corpus by one option, not by several: ${data_options[0]}, ${data_options[2]}"
fi
if [ ${#data_options[@]} -gt 0 ]; then
    corpus=$(basename "${data_options[1]}" | LC_ALL=C tr -c 'A-Za-z0-9._\n-' _)
    corpus+=_$(printf '%s\n' "${data_options[@]}" | sha256sum | cut -c 1-6)
fi
exp=${expdir}/${corpus}${own}
if "${print_exp}"; then
    printf '%s\n' "${exp}"
    exit
fi
suffix=$(name_of "${asr_args}") # of the run's folder
gpus=() # that are needed here: not where another machine is asked to do the work
if ! "${skip_train}" && within 4 && [ -z "${train_cmd}" ] && [ "${num_nodes}" -le 1 ]; then
    gpus+=(--ngpu "${ngpu}")
fi
if "${gpu_inference}" && [ -z "${decode_cmd}" ] && { within 7 || ! "${skip_eval}" && within 5; }; then
    gpus+=(--gpu_inference)
fi
trained=
[ "${stage}" -lt 5 ] || trained=--trained
pruning_options=
parts= # the targets of a run that has several
checked=$("${python}" -m espnet_pinch.bin.check_config --config "${asr_config}" "${gpus[@]}" ${trained} \
    ${baseline_config:+--baseline_config "${baseline_config}"} \
    --from_run "${layer_sparsities:-${exp}/asr_${upstream}${subwords}_pinch_{\}${suffix}}" \
    ${method:+--method "${method}"} ${target_sparsity:+--target_sparsity "${target_sparsity}"} \
    ${target_macs:+--target_macs "${target_macs}"} ${unit:+--unit "${unit}"} ${conv:+--conv "${conv}"} \
    ${bits:+--bits "${bits}"} ${average_bits:+--average_bits "${average_bits}"} \
    ${unknown_characters:+--unknown_characters "${unknown_characters}"} ${text:+--text "${text}"})
while IFS= read -r line; do
    printf -v "${line%%=*}" '%s' "${line#*=}"
done <<<"${checked}"
[ -z "${layer_sparsities}" ] || [ -n "${from_run}" ] ||
    die "--layer_sparsities: ${method} reads no finished run, or ${asr_config} names that run"
upstream_dir=${upstream_name:+downloads/upstreams/${upstream_name}}
upstream_dir=${upstream_dir:-${upstream_source}}

data=data/${corpus}
dump=${dumpdir}/${corpus}${own}/${upstream}/raw${subwords}
baseline=${exp}/asr_${upstream}${subwords}_baseline
if [ -z "${asr_tag}" ]; then
    asr_tag=${upstream}${subwords}_${method}
    [ "${unit:-weight}" = weight ] || asr_tag+=_${unit}
    [ "${conv:-false}" = false ] || asr_tag+=_conv
    [ "${method}" = dense ] || asr_tag+=_${target_sparsity:-macs_${target_macs}}
    asr_tag+=${bits:+_${bits}}${suffix}
fi
run=${asr_exp:-${exp}/asr_${asr_tag}}
if [ -n "${inference_config}" ]; then
    decoded=decode_$(basename "${inference_config}" .yaml | sed 's/^decode_//')
elif [ -n "${lm}" ]; then
    decoded=decode_ctc_beam_$(basename "${lm}" | sed 's/\.gz$//; s/\.arpa$//; s/ /_/g')$(name_of "${inference_args}")
elif [[ ${inference_args} == *--beam_size* || ${inference_args} == *--hotwords* ]]; then
    decoded=decode_ctc_beam$(name_of "${inference_args}")
else
    decoded=decode_ctc_greedy
fi

# absolute PATH: for people to read
absolute() {
    realpath -ms -- "$1"
}

# quoted TEXT: as ESPnet's options read it whole, which are YAML behind the "="
quoted() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# need FILE STAGE: stop unless an earlier stage has left FILE
need() {
    [ -f "$1" ] || die "$1 is missing: run stage $2 first (./run.sh --stage $2)"
}

# upstream_files: hash of the listing of the upstream's files
upstream_files() {
    listing "${upstream_dir}" '*.json' '*.safetensors' '*.bin'
}

# noted FILE: the line in FILE, nothing where there is none
noted() {
    cat "$1" 2>/dev/null || true
}

# note FILE TEXT: have TEXT in FILE; runs of a sweep do so at once
note() {
    [ "$(noted "$1")" != "$2" ] || return 0
    writable "$(dirname "$1")"
    printf '%s\n' "$2" >"$1.$$"
    mv "$1.$$" "$1"
}

# same_upstream DIR ADVICE: stop where DIR was made with another upstream than the one that the YAML names
same_upstream() {
    local begun
    begun=$(noted "$1/upstream.txt")
    [ -z "${begun}" ] || [ "${begun}" = "${upstream_source}" ] ||
        die "$1 was begun with the upstream ${begun}, and ${asr_config} names ${upstream_source}: $2"
}
other_dump="run stage 2 again (./run.sh --stage 2)"
other_experiment="give other names (--upstream with a YAML of its own, --asr_tag), or remove that folder"

# prepare_data N: stage N of the recipe's own data.sh
prepare_data() {
    local more=() name
    if [ -n "$(given_ways)" ]; then
        more=(--train_set "${train_set}" --valid_set "${valid_set}" --test_sets "${test_sets}")
        for name in ${way_settings}; do
            [ -z "${!name}" ] || more+=("--${name}" "${!name}")
        done
    fi
    bash -p local/data.sh --stage "$1" --stop_stage "$1" --data "${data}" --nj "${nj}" --python "${python}" \
        "${data_options[@]}" "${more[@]}"
}

[ -z "${other_source}" ] || log "note: ${baseline_config} names the upstream ${other_source}; the baseline starts from" \
    "${upstream_source}, which ${asr_config} names, as the run does"

# ---- Stages 0 to 3: data

if ! "${skip_data_prep}" && within 0; then
    log "stage 0: corpus and upstream"
    prepare_data 0
    if [ -n "${upstream_name}" ]; then
        # Where its files are not those that were left there, the program looks again.
        found=$([ ! -d "${upstream_dir}" ] || upstream_files)
        [ "${found}" = "$(noted "${upstream_dir}.files")" ] || rm -f "${upstream_dir}.done"
        merged_from=${upstream_source%:*} # the folder, where a language of one is merged in
        merged_from=$([ ! -d "${merged_from}" ] || listing "${merged_from}" '*.json' '*.safetensors' '*.bin')
        step "${upstream_dir}.done" "upstream ${upstream_source}" "=${upstream_source} ${merged_from}" -- \
            "${python}" -m espnet_pinch.bin.fetch_upstream --upstream "${upstream_source}" --out "${upstream_dir}"
        note "${upstream_dir}.files" "$(upstream_files)"
    fi
fi

export HF_HUB_OFFLINE=1 # from here on nothing is fetched

if ! "${skip_data_prep}"; then
    if within 1; then
        log "stage 1: data directories"
        prepare_data 1 || { # nothing goes on with what an earlier call has left
            rm -f "${data}/check.done"
            exit 1
        }
        # shellcheck disable=SC2086
        step "${data}/check.done" "checking ${data}" "=${train_set} ${valid_set} ${test_sets}" \
            "=$(listing "${data}" wav.scp text utt2spk) $(sounds "${data}"/*/wav.scp)" -- \
            "${python}" -m espnet_pinch.bin.check_data --data "${data}" --nj "${nj}" \
            --sets "${train_set}" "${valid_set}" ${test_sets}
    fi

    if within 2; then
        log "stage 2: token list and dump"
        need "${data}/check.done" 1
        [ -d "${upstream_dir}" ] || die "${upstream_dir} is missing: run stage 0 first (./run.sh --stage 0)"
        own_baseline=()
        of_tokens=()
        [ "${task}" != asr ] ||
            of_tokens=(--unknown_characters "${unknown_characters}" --token_type "${token_type}" --nbpe "${nbpe}")
        [ -n "${baseline_config}" ] || own_baseline=(--own_baseline)
        [ "$(noted "${dump}/upstream.txt")" = "${upstream_source}" ] || rm -f "${dump}/dump.done"
        note "${dump}/upstream.txt" "${upstream_source}"
        # shellcheck disable=SC2086
        step "${dump}/dump.done" "token list and dump ${dump}" "${data}/check.done" \
            "=${upstream_source} $(upstream_files)" \
            "=${train_set} ${valid_set} ${test_sets} ${audio_format} ${min_wav_duration} ${max_wav_duration}" \
            "=${unknown_characters} ${own_baseline[*]} ${text}" -- \
            "${python}" -m "espnet_pinch.bin.${prepare_dump}" --data "${data}" --upstream "${upstream_dir}" \
            "${own_baseline[@]}" "${of_tokens[@]}" --text "${text}" \
            --out "${dump}" --train_set "${train_set}" --valid_set "${valid_set}" --test_sets ${test_sets} \
            --audio_format "${audio_format}" --min_wav_duration "${min_wav_duration}" \
            --max_wav_duration "${max_wav_duration}"
    fi

    if within 3; then
        need "${dump}/dump.done" 2
        same_upstream "${dump}" "${other_dump}"
        log "stage 3: nothing to do, stage 2 has left the lengths by which batches are formed"
    fi
fi

# ---- Stage 4: training

# token_options: what asr_train needs to know of the tokens, in the array tokens
token_options() {
    local folder
    folder=$(noted "${dump}/token_type")
    folder=${dump}/token_list/${folder:-${token_list}}
    tokens=(--token_list "${folder}/tokens.txt")
    [ ! -f "${folder}/bpe.model" ] || tokens+=(--token_type bpe --bpemodel "${folder}/bpe.model")
}

# data_options: what it needs to know of the data, in the array train_data
data_options() {
    token_options
    train_data=(
        "${tokens[@]}"
        --train_data_path_and_name_and_type "${dump}/${train_set}/wav.scp,speech,${sound}"
        --train_data_path_and_name_and_type "${dump}/${train_set}/text,text,text"
        --train_shape_file "${dump}/${train_set}/utt2num_samples"
        --valid_data_path_and_name_and_type "${dump}/${valid_set}/wav.scp,speech,${sound}"
        --valid_data_path_and_name_and_type "${dump}/${valid_set}/text,text,text"
        --valid_shape_file "${dump}/${valid_set}/utt2num_samples"
        --max_cache_fd 256 # archives that stay open
    )
}

# launcher EXP: what goes before the command of a training, in the array launch; for several nodes ESPnet's launcher
launcher() {
    # shellcheck disable=SC2206
    launch=(${train_cmd})
    if [ "${num_nodes}" -gt 1 ]; then
        launch=("${python}" -m espnet2.bin.launch --cmd "${train_cmd:-utils/slurm.pl}" --log "$1/launch.log"
            --ngpu "${ngpu}" --num_nodes "${num_nodes}" --init_file_prefix "$1/.dist_init_" --)
    fi
}

# asr_train DIR CONFIG UPSTREAM [OPTION...]: the command of a training into DIR, in the array training
asr_train() {
    local dir=$1 config=$2 from=$3
    shift 3
    training=("${python}" -m espnet_pinch.bin.asr_train --task "${task}" --config "${config}" --output_dir "${dir}"
        --resume true --ngpu "${ngpu}" --multiprocessing_distributed true "${train_data[@]}"
        --frontend_conf "upstream=$(quoted "${from}")" --unknown_characters "${unknown_characters}"
        --text "${text}" "$@")
}

# train EXP TITLE CONFIG UPSTREAM UPSTREAM_KEY [OPTION...]: train into EXP (resumed where it was cut), and fold.
# asr_train itself refuses to go on with other settings or data than those EXP was begun with, and says which.
train() {
    local dir=$1 title=$2 config=$3 from=$4 from_key=$5 inputs
    shift 5
    inputs=("${config}" "${dump}/dump.done" "=${from_key}" "=$*")
    launcher "${dir}"
    asr_train "${dir}" "${config}" "${from}" "$@"
    step "${dir}/train.done" "training ${title}" "${inputs[@]}" -- "${launch[@]}" "${training[@]}"
    step "${dir}/fold.done" "folding ${title}" "${dir}/train.done" "=${inference_asr_model}" -- \
        "${python}" -m espnet_pinch.bin.fold --exp "${dir}" --checkpoint "${inference_asr_model}"
}

if ! "${skip_train}" && within 4; then
    log "stage 4: training"
    need "${dump}/dump.done" 2
    same_upstream "${dump}" "${other_dump}"
    for dir in "${baseline}" "${run}"; do
        same_upstream "${dir}" "${other_experiment}"
    done
    [ -d "${upstream_dir}" ] || die "${upstream_dir} is missing: run stage 0 first (./run.sh --stage 0)"
    sound=$(noted "${dump}/audio_type")
    [ -n "${sound}" ] || die "${dump} is of an earlier release: ${other_dump}"
    data_options
    upstream_key=$(upstream_files)
    # shellcheck disable=SC2206
    run_options=(${pruning_options} ${from_run:+--pruning "${from_run_setting}=$(quoted "${from_run}")"} ${asr_args})
    if [ -n "${baseline_config}" ] && [ ! -f "${baseline}/train.done" ]; then
        # The run's settings come first: what they ask of the model is known, and the baseline may take hours.
        asr_train "${run}/check" "${asr_config}" "${upstream_dir}" "${run_options[@]}"
        step "${run}/check.done" "checking the settings of ${asr_tag}" "${asr_config}" "${dump}/dump.done" \
            "=${upstream_key}" "=${run_options[*]}" -- "${training[@]}" --dry_run true --ngpu 0
        rm -rf "${run}/check"
    fi
    note "${baseline}/upstream.txt" "${upstream_source}"
    note "${run}/upstream.txt" "${upstream_source}"
    if [ -n "${baseline_config}" ]; then
        # shellcheck disable=SC2086
        train "${baseline}" "the dense baseline" "${baseline_config}" "${upstream_dir}" "${upstream_key}" \
            ${baseline_args}
        start=${baseline}/folded/hf
    else
        step "${baseline}/fold.done" "taking ${upstream} as its own baseline" "=${upstream_key}" "${dump}/dump.done" -- \
            "${python}" -m espnet_pinch.bin.fold --exp "${baseline}" --untrained --task "${task}" --config "${asr_config}" \
            --pruning method=dense "${tokens[@]}" \
            --unknown_characters "${unknown_characters}" --text "${text}" \
            --frontend_conf "upstream=$(quoted "${upstream_dir}")"
        start=${upstream_dir}
    fi
    train "${run}" "${asr_tag}" "${asr_config}" "${start}" \
        "$(cat "${baseline}/fold.done" ${from_run:+"${from_run}/folded/parameters.json"})" "${run_options[@]}"
fi

# ---- Stages 5 and 6: decoding and scoring

# decode EXP [PART]: all test sets; of a run with several targets, with the model of PART
decode() {
    local dir=$1 part=${2:+/$2} inputs program
    inputs=("${dir}/fold.done" "${dump}/dump.done" "=${test_sets} ${inference_args} ${inference_batch_size}")
    if [ -n "${inference_config}" ]; then
        program=(-m espnet_pinch.bin.asr_beam_search --inference_config "${inference_config}" --nj "${inference_nj}")
        inputs+=("${inference_config}")
    else
        program=(-m espnet_pinch.bin.asr_decode --batch_size "${inference_batch_size}" ${lm:+--lm "${lm}"})
        [ -z "${lm}" ] || inputs+=("${lm}")
    fi
    # shellcheck disable=SC2086
    step "${dir}${part}/${decoded}/decode.done" "decoding ${dir}${2:+, target $2}" "${inputs[@]}" -- \
        ${decode_cmd} "${python}" "${program[@]}" --model "${dir}/folded${part}" --data "${test_sets_in_dump[@]}" \
        --out "${dir}${part}/${decoded}" --ngpu "$("${gpu_inference}" && echo 1 || echo 0)" ${inference_args}
}

if within 5 || within 6 || within 7; then
    same_upstream "${dump}" "${other_dump}"
    for dir in "${baseline}" "${run}"; do
        same_upstream "${dir}" "${other_experiment}"
    done
fi

test_sets_in_dump=()
for name in ${test_sets}; do
    test_sets_in_dump+=("${dump}/${name}")
done

if ! "${skip_eval}"; then
    if within 5; then
        log "stage 5: decoding"
        need "${dump}/dump.done" 2
        need "${baseline}/fold.done" 4
        need "${run}/fold.done" 4
        decode "${baseline}"
        for part in ${parts:-""}; do
            decode "${run}" "${part}"
        done
    fi

    if within 6; then
        log "stage 6: scoring"
        need "${baseline}/${decoded}/decode.done" 5
        for part in ${parts:-""}; do
            report=${run}${part:+/${part}}
            need "${report}/${decoded}/decode.done" 5
            [ "${decoded}" = decode_ctc_greedy ] || report+=/${decoded} # beside the report on greedy search
            # shellcheck disable=SC2086
            "${python}" -m espnet_pinch.bin.score --exp "${run}" --baseline "${baseline}" --decoded "${decoded}" \
                --part "${part}" --out "${report}" --references "${dump}" --sets ${test_sets} \
                --upstream "${upstream}${subwords}" --corpus "${corpus}" --command "${command_line}" \
                --error_rate "${error_rate}"
        done
        if [ -n "${parts}" ] && [ "${decoded}" = decode_ctc_greedy ]; then
            "${python}" -m espnet_pinch.bin.curve --exp "${run}"
            report=${run}
        fi
        log "results: $(absolute "${report}/RESULTS.md")"
    fi
fi

# ---- Stage 7: export

if within 7; then
    log "stage 7: export"
    need "${run}/fold.done" 4
    need "${dump}/dump.done" 2
    for part in ${parts:-""}; do
        dir=${run}${part:+/${part}}
        inputs=("${run}/fold.done" "${dump}/dump.done" "=${test_sets} ${export_args} ${upstream_source} ${corpus}")
        [ ! -f "${dir}/results.json" ] || inputs+=("${dir}/results.json")
        # shellcheck disable=SC2086
        step "${dir}/export.done" "exporting ${run}${part:+, target ${part}}" "${inputs[@]}" -- \
            ${decode_cmd} "${python}" -m espnet_pinch.bin.export --exp "${run}" --part "${part}" \
            --data "${test_sets_in_dump[@]}" --upstream "${upstream_source}" --corpus "${corpus}" \
            --batch_size "${inference_batch_size}" --ngpu "$("${gpu_inference}" && echo 1 || echo 0)" ${export_args}
        log "exported: $(absolute "${dir}/export/README.md")"
    done
fi
log "finished"
