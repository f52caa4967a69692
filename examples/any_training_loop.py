"""Prune a CTC model in your own training loop. Runs in seconds on a CPU, with a tiny random model and random audio.

python examples/any_training_loop.py [FOLDER]      saves the pruned model to FOLDER
"""

import sys

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from espnet_pinch import Pinch

STEPS = 60

torch.manual_seed(0)
tiny = dict(conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(10, 32), num_feat_extract_layers=2, hidden_size=32)
tiny.update(num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=12, layerdrop=0.0)
tiny.update(num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, apply_spec_augment=False)
model = Wav2Vec2ForCTC(Wav2Vec2Config(**tiny)).train()  # yours: Wav2Vec2ForCTC.from_pretrained("...")

pinch = Pinch(target_sparsity=0.75)  # gates the six linear layers of every Transformer block
pinch.attach(model, total_steps=STEPS)
optimizer = torch.optim.AdamW(pinch.parameter_groups(lr=1e-3, weight_decay=0.01))
for step in range(STEPS):
    audio, labels = torch.randn(4, 16000), torch.randint(1, 12, (4, 8))  # yours: batches of a DataLoader
    loss = model(audio, labels=labels).loss + pinch.penalty()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 19:
        print(f"step {step + 1}: loss {float(loss):.2f}, sparsity {100 * pinch.sparsity():.2f} %")

pinch.fold()  # plain linear layers with zeros: save the model as ever
if len(sys.argv) > 1:
    model.save_pretrained(sys.argv[1])
