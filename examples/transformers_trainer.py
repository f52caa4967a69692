"""Prune a CTC model with transformers' Trainer. Runs in seconds on a CPU, with a tiny random model and random audio.

python examples/transformers_trainer.py FOLDER      checkpoints and the pruned model go to FOLDER; run again, it resumes
"""

import sys

import torch
from transformers import TrainingArguments, Wav2Vec2Config, Wav2Vec2ForCTC
from transformers.trainer_utils import get_last_checkpoint

from espnet_pinch import Pinch
from espnet_pinch.trainer import PruningTrainer  # in the place of transformers' Trainer

torch.manual_seed(0)
tiny = dict(conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(10, 32), num_feat_extract_layers=2, hidden_size=32)
tiny.update(num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=12, layerdrop=0.0)
tiny.update(num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, apply_spec_augment=False)
model = Wav2Vec2ForCTC(Wav2Vec2Config(**tiny))  # yours: Wav2Vec2ForCTC.from_pretrained("...")
data = [{"input_values": torch.randn(16000), "labels": torch.randint(1, 12, (8,))} for _ in range(64)]

arguments = TrainingArguments(
    sys.argv[1],
    max_steps=60,
    per_device_train_batch_size=4,
    learning_rate=1e-3,
    save_steps=20,
    logging_steps=20,
    report_to=[],
    use_cpu=True,
)
trainer = PruningTrainer(pruning=Pinch(target_sparsity=0.75), model=model, args=arguments, train_dataset=data)
trainer.train(resume_from_checkpoint=get_last_checkpoint(sys.argv[1]))
print(f"sparsity {100 * trainer.pruning.sparsity():.2f} %")
trainer.pruning.fold()
model.save_pretrained(sys.argv[1])
