# SPDX-License-Identifier: Apache-2.0
"""A small byte-level BPE tokenizer, trained on the sentences below, and a chat template."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from vllm_epd.demo.files import write_json

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

# Messages are plain text; vLLM itself puts the placeholder of each picture or clip into them.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

_MAX_LEARNT_TOKENS = 480
_SENTENCES = (
    "Describe the image in detail and say what you see in the picture.",
    "The user asks a question about the image and the assistant answers it.",
    "You are a helpful assistant. What is the colour of the house near the water?",
    "A red boat lies in the harbour while two white birds fly over the green hills.",
    "The children play with a yellow ball in the garden behind the old school.",
    "There are three people on the bridge and a small dog runs after them.",
    "Compare the first picture with the second one and list the differences.",
    "How many windows does the tall building on the left side of the street have?",
    "The train leaves the station in the morning and reaches the coast before night.",
    "A chart shows the number of visitors for each month of the last year.",
    "In the video a man opens the door, walks into the kitchen and makes some tea.",
    "Read the text on the sign and translate it, please.",
    "The sun sets behind the mountains and the sky turns orange and purple.",
    "Several bicycles stand in front of the market where farmers sell fresh bread and fruit.",
    "It seems that the photograph was taken from a window high above the square.",
    "Which of these images was taken in winter, and which one in summer?",
)


@dataclass(frozen=True, slots=True)
class DemoTokenizer:
    """A trained tokenizer, with the special tokens of one family at the end of its vocabulary."""

    backend: Tokenizer

    @classmethod
    def train(cls, *special_tokens: str) -> "DemoTokenizer":
        """Learn the sentences above, then add the chat's tokens and a family's own."""
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=_MAX_LEARNT_TOKENS, initial_alphabet=sorted(alphabet), show_progress=False
        )
        backend.train_from_iterator(_SENTENCES, trainer)
        names = (END_OF_TEXT, TURN_START, TURN_END, *special_tokens)
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        return cls(backend)

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return self.backend.get_vocab_size()

    def id_of(self, token: str) -> int:
        """The number of a token that the vocabulary has."""
        number = self.backend.token_to_id(token)
        if number is None:
            raise KeyError(token)
        return number

    def chat_ids(self) -> dict[str, int]:
        """The special tokens that configurations name."""
        end_of_text, turn_end = self.id_of(END_OF_TEXT), self.id_of(TURN_END)
        return {"bos_token_id": end_of_text, "eos_token_id": turn_end, "pad_token_id": end_of_text}

    def unreadable_ids(self) -> tuple[int, ...]:
        """Tokens whose text is not printable ASCII: special ones, and pieces of other characters."""
        texts = {number: self.backend.decode([number]) for number in range(self.size)}
        return tuple(number for number, text in texts.items() if not _readable(text))

    def write(
        self,
        folder: Path,
        *,
        max_length: int,
        chat_template: str = CHAT_TEMPLATE,
        unknown_token: str | None = None,
    ) -> None:
        """Write the files that transformers loads a tokenizer and its chat template from."""
        self.backend.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "unk_token": unknown_token,
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", settings)


def _readable(text: str) -> bool:
    # Special tokens decode to nothing.
    return text != "" and text.isascii() and text.isprintable()
