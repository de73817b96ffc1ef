"""Writes pairs.json: what transformers' fast tokenizers make of texts and pairs, cut longest first.

    pairs.py [MINILM]

MINILM is a folder of all-MiniLM-L6-v2, whose tokenizer is the second one; without it that part stays as it is. The first is
a small one of WordPiece, written into pairs.json whole.
"""

import json
import pathlib
import string
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

CASES = [
    ("the cat sat", None),
    ("The cat sat on the mat, and on the mats.", "Cats sit!"),
    ("a", "the cat sat on the mat and the dog sat on the cat and on the other mats"),
    ("the dogs sat on the mat and the dog sat on the cat", "cat"),
    ("the cat sat on the mat and the dog", "the dog sat on the cat and the mat"),
    ("", "the cat"),
    ("the cat", ""),
    ("", None),
    ("Ünïcödé naïve café — “quoted” 猫が座った 🐈‍⬛ ﬁne\u00a0\u200b\ttab\r\nline", "ÉTÉ straße İstanbul \u0301combining"),
    ("[SEP] the [MASK] cat [CLS]", "[PAD] mat [UNK]"),
    ("unknownword zzzqx the " + "x" * 120, None),
    ("the cat sat on the mat and the dog sat on the cat and on the other mats", None),
]
LENGTHS = [64, 17, 12, 7, 4, 3]


def small():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += "the cat dog mat sat sit on and other uni code na cafe fine tab line 猫 座 ete stras istanbul".split()
    words += ["##s", "##code", "##ive", "##e", "##t", "##at", "##se"]
    letters = string.ascii_lowercase.replace("z", "").replace("q", "")
    words += [*letters, *("##" + letter for letter in letters if letter not in "ste"), *",.!—“”ß"]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return tokenizer


def cases(tokenizer):
    found = []
    for text, pair in CASES:
        # As lists: alone, transformers takes an empty second text for none.
        batch = ([text],) if pair is None else ([text], [pair])
        whole = len(tokenizer(*batch)["input_ids"][0])
        for length in LENGTHS:
            # The least length: a pair has three special tokens.
            encoded = tokenizer(*batch, truncation=True, max_length=length, return_token_type_ids=True)
            found.append(
                {
                    "text": text,
                    "pair": pair,
                    "max_length": length,
                    "ids": encoded["input_ids"][0],
                    "types": encoded["token_type_ids"][0],
                    "truncated": whole > length,
                }
            )
            if whole <= length and length > LENGTHS[-1]:
                found[-1]["whole"] = True
    # One case of those that are not cut is enough.
    kept, seen = [], set()
    for case in found:
        key = (case["text"], case["pair"])
        if case.pop("whole", False) and key in seen:
            continue
        seen.add(key)
        kept.append(case)
    return kept


def main():
    path = pathlib.Path(__file__).with_name("pairs.json")
    golden = json.loads(path.read_text()) if path.exists() else {}
    made = small()
    golden["versions"] = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    golden["tokenizer"] = json.loads(made.to_str())
    golden["small"] = cases(PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512))
    if len(sys.argv) > 1:
        golden["minilm"] = cases(transformers.AutoTokenizer.from_pretrained(sys.argv[1]))
    path.write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
