"""How the demo pair learns: tokenizer, model shape, batches, one optimiser loop. Deterministic on one thread."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import dropout
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from w2s_core.demo.pair_scoring import padded, token_log_probs

BOS, EOS = "<|bos|>", "<|eos|>"
BOS_ID, EOS_ID = 0, 1
VOCABULARY = 4_096

Rows = list[list[int]]


@dataclass(frozen=True)
class Phase:
    """One pass of training: its bar's label, how often it sees the data, its peak learning rate, rows per step."""

    name: str
    epochs: int
    learning_rate: float
    batch: int
    seed: int
    embedding_dropout: float


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that it loses nothing; it adds no tokens by itself and decodes exactly what it encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def new_model(seed: int) -> LlamaForCausalLM:
    """A Llama of 2.56 M parameters, freshly drawn, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


class Documents:
    """Texts as token rows, BOS … EOS, anew each epoch: most alone, some joined by twos and threes.

    Joined because answers have several sentences; joined at random, so that a row says nothing about the next
    sentence's sentiment and the untuned model stays neutral all along.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], alone: float = 0.6) -> None:
        self._first = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        self._later = tokenizer([" " + text for text in texts], add_special_tokens=False)["input_ids"]
        self._alone = alone

    def rows(self, rng: random.Random) -> Rows:
        """Every text once, in a fresh order and grouping."""
        order = list(range(len(self._first)))
        rng.shuffle(order)
        rows = []
        while order:
            count = 1 if rng.random() < self._alone else rng.choice((2, 3))
            first, *later = [order.pop() for _ in range(min(count, len(order)))]
            tail = [token for index in later for token in self._later[index]]
            rows.append([BOS_ID, *self._first[first], *tail, EOS_ID])
        return rows


def batches(rows: Rows, size: int, rng: random.Random) -> list[Rows]:
    """All rows in batches of `size` and of like length (little filling), the batches in random order."""
    rows = rng.sample(rows, len(rows))
    block = size * 16
    grouped = [sorted(rows[start : start + block], key=len) for start in range(0, len(rows), block)]
    result = [group[start : start + size] for group in grouped for start in range(0, len(group), size)]
    rng.shuffle(result)
    return result


def fit(model: LlamaForCausalLM, documents: Callable[[random.Random], Rows], phase: Phase) -> LlamaForCausalLM:
    """A trained copy of `model`: AdamW, 50 steps of warm-up, then a linear decay to zero."""
    model = copy.deepcopy(model)
    model.train()
    rng = random.Random(phase.seed)
    torch.manual_seed(phase.seed)
    plan = [batch for _ in range(phase.epochs) for batch in batches(documents(rng), phase.batch, rng)]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.98))
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: dropout(output, phase.embedding_dropout)
    )
    bar = tqdm(plan, desc=f"training {phase.name}")
    for step, rows in enumerate(bar):
        rate = phase.learning_rate * min(1.0, (step + 1) / 50) * (1 - step / len(plan))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(model, optimizer, rows)
        bar.set_postfix(nats_per_token=f"{loss:.3f}", refresh=False)
    hook.remove()
    model.train(False)
    return model


def _step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, rows: Rows) -> float:
    tokens = padded(rows)
    loss = -token_log_probs(model, tokens).sum() / (tokens[:, 1:] >= 0).sum()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def average(members: Sequence[LlamaForCausalLM]) -> LlamaForCausalLM:
    """A model whose weights are the mean of the members', which must have one ancestor for that to make sense."""
    model = copy.deepcopy(members[0])
    for target, *others in zip(model.parameters(), *(member.parameters() for member in members[1:]), strict=True):
        target.copy_(torch.stack([target, *others]).mean(0))
    return model
