"""Training of the demo pair: tokenizer, model, batches and optimizer loop. Deterministic on one thread."""

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
    """Hyperparameters of one training phase. `learning_rate` is the peak, `batch` the rows per step."""

    name: str
    epochs: int
    learning_rate: float
    batch: int
    seed: int
    embedding_dropout: float


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer. It is lossless and adds no special tokens by itself."""
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
    """A randomly initialized Llama with 2.56 M parameters in float32."""
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
    """Token rows (BOS … EOS) of texts, regrouped each epoch: most texts alone, some joined in twos and threes.

    They are joined because answers have several sentences, and at random so that a sentence does not predict the next
    one's sentiment and the untuned model stays neutral throughout.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], alone: float = 0.6) -> None:
        self._first = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        self._later = tokenizer([" " + text for text in texts], add_special_tokens=False)["input_ids"]
        self._alone = alone

    def rows(self, rng: random.Random) -> Rows:
        """Every text once, in a new random order and grouping."""
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
    """Batches of `size` rows of similar length (little padding), in random order."""
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
    steps = [batch for _ in range(phase.epochs) for batch in batches(documents(rng), phase.batch, rng)]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.98))
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: dropout(output, phase.embedding_dropout)
    )
    bar = tqdm(steps, desc=f"training {phase.name}")
    for step, rows in enumerate(bar):
        rate = phase.learning_rate * min(1.0, (step + 1) / 50) * (1 - step / len(steps))
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
    """The model with the mean of the members' weights. They must descend from one model for that to make sense."""
    model = copy.deepcopy(members[0])
    for target, *others in zip(model.parameters(), *(member.parameters() for member in members[1:]), strict=True):
        target.copy_(torch.stack([target, *others]).mean(0))
    return model
