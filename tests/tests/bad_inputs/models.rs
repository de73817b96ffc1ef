//! Base models: weights, shard indexes and config.json.

use candle_core::{DType, Device, Tensor};
use lowrank_tests::place::Place;
use serde_json::json;
use std::fs;

const EVAL: [&str; 5] = ["eval", "--model", "model", "--data", "rows.jsonl"];
const WEIGHTS: &str = "model/model.safetensors";
const INDEX: &str = "model/model.safetensors.index.json";

/// Spoils a model of one file and evaluates it.
fn check(spoil: impl FnOnce(&Place), expected: &str) {
    let place = Place::with_model("biased");
    spoil(&place);
    place.refuses(&EVAL, 1, &[expected]);
}

/// The same with a model of three shards.
fn check_shards(spoil: impl FnOnce(&Place), expected: &str) {
    let place = Place::with_model("plain");
    spoil(&place);
    place.refuses(&EVAL, 1, &[expected]);
}

/// A file of the given header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn truncated_files() {
    let cut =
        |length: usize| move |place: &Place| place.write(WEIGHTS, &place.read(WEIGHTS)[..length]);
    let invalid = "model/model.safetensors: not a valid safetensors file: ";
    check(
        cut(0),
        &format!("{invalid}it is 0 bytes long, and the header's length alone takes 8"),
    );
    check(cut(100), &format!("{invalid}it claims a header of 3"));
    check(cut(100), "bytes, and only 92 follow: is it truncated?");
    check(cut(9000), &format!("{invalid}tensor `model."));
    check(cut(9000), "bytes long: is the file truncated?");
}

#[test]
fn lying_headers() {
    let header =
        |header: &'static str, data| move |place: &Place| place.write(WEIGHTS, file(header, data));
    let length = |length: u64| {
        move |place: &Place| {
            let mut bytes = place.read(WEIGHTS);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            place.write(WEIGHTS, bytes);
        }
    };
    check(
        length(u64::MAX),
        "it claims a header of 18446744073709551615 bytes, and the most allowed is 100000000",
    );
    check(
        length(99_000_000),
        "it claims a header of 99000000 bytes, and only",
    );
    check(
        header(
            r#"{"model.norm.weight":{"dtype":"F32","shape":[1048576,262144],"data_offsets":[0,1099511627776]}}"#,
            16,
        ),
        "tensor `model.norm.weight` ends at byte 1099511627776 of the data, which is 16 bytes long: is the file truncated?",
    );
    check(
        header(
            r#"{"model.norm.weight":{"dtype":"F32","shape":[1048576,262144],"data_offsets":[0,16]}}"#,
            16,
        ),
        "tensor `model.norm.weight` is F32 of shape [1048576, 262144], 1099511627776 bytes, but its offsets [0, 16] hold 16",
    );
    check(
        header(
            r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#,
            16,
        ),
        "tensor `x` has shape [4294967296, 4294967296], whose size overflows",
    );
    check(header("{\"x\":", 4), "its header: EOF while parsing");
    check(
        header(
            r#"{"x":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}}"#,
            16,
        ),
        "tensor `x` has an unknown dtype `F33`",
    );
}

#[test]
fn shard_indexes() {
    let place_at = |shard: &'static str| {
        move |place: &Place| {
            place.edit_json(INDEX, |index| {
                index["weight_map"]["model.norm.weight"] = shard.into();
            });
        }
    };
    let outside = |file: &str| format!("{INDEX}: `{file}` points outside the folder");
    for file in [
        "../rows.jsonl",
        "/etc/passwd",
        "inner/x.safetensors",
        "..",
        "",
    ] {
        check_shards(place_at(file), &outside(file));
    }
    check_shards(
        place_at("model-00009-of-00003.safetensors"),
        &format!(
            "{INDEX}: tensor `model.norm.weight` is in `model-00009-of-00003.safetensors`, which is missing"
        ),
    );
    check_shards(
        place_at("model-00001-of-00003.safetensors"),
        &format!(
            "{INDEX}: tensor `model.norm.weight` is not in `model-00001-of-00003.safetensors`"
        ),
    );
    let unlisted = |place: &Place| {
        place.edit_json(INDEX, |index| {
            let listed = index["weight_map"].as_object_mut().unwrap();
            listed.remove("model.norm.weight");
        });
    };
    check_shards(
        unlisted,
        &format!(
            "{INDEX}: tensor `model.norm.weight` of `model-00003-of-00003.safetensors` is not listed"
        ),
    );
}

#[cfg(unix)]
#[test]
fn links_that_lead_out_of_the_folder() {
    const SHARD: &str = "model-00002-of-00003.safetensors";
    let link = |place: &Place| {
        let shard = place.path(&format!("model/{SHARD}"));
        fs::rename(&shard, place.path("secret.safetensors")).unwrap();
        std::os::unix::fs::symlink("../secret.safetensors", shard).unwrap();
    };
    check_shards(
        link,
        &format!("{INDEX}: `{SHARD}` points outside the folder"),
    );
}

#[test]
fn tensors_that_do_not_fit() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let name = "model.layers.1.self_attn.k_proj.weight";
    check(
        |place| place.edit_tensors(WEIGHTS, |tensors| drop(tensors.remove(name))),
        &format!("model: tensor `{name}` is missing"),
    );
    check(
        |place| {
            place.edit_tensors(WEIGHTS, |tensors| {
                tensors.insert("model.layers.7.mlp.up_proj.weight".into(), zeros(&[3, 5]));
            });
        },
        "model: tensor `model.layers.7.mlp.up_proj.weight` is used by no part of the model that config.json describes",
    );
    check(
        |place| {
            place.edit_tensors(WEIGHTS, |tensors| {
                tensors.insert(name.into(), zeros(&[42, 24]));
            });
        },
        &format!("model: tensor `{name}` has shape [42, 24], expected [24, 42]"),
    );
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        check(
            |place| {
                place.edit_tensors(WEIGHTS, |tensors| {
                    let mut values = vec![0.5; 24 * 42];
                    values[43] = value;
                    let spoilt = Tensor::from_vec(values, (24, 42), &Device::Cpu).unwrap();
                    tensors.insert(name.into(), spoilt);
                });
            },
            &format!(
                "{WEIGHTS}: tensor `{name}` holds {shown} at element 43; expected finite numbers"
            ),
        );
    }
    check(
        |place| {
            place.edit_tensors(WEIGHTS, |tensors| {
                let integers = Tensor::zeros((24, 42), DType::I64, &Device::Cpu).unwrap();
                tensors.insert(name.into(), integers);
            });
        },
        &format!(
            "model: tensor `{name}` is stored as i64, which is not yet supported; use dtype = \"f32\""
        ),
    );
}

#[test]
fn what_is_no_model_folder() {
    let check = |source: &str, code, expected: &str| {
        let place = Place::with_model("biased");
        place.write("file.txt", "text");
        place.write("empty/readme.txt", "text");
        place.write("text.gguf", "no GGUF at all");
        let claims = [3u64 << 32 | 0x4655_4747, 7, 1 << 61].map(u64::to_le_bytes);
        place.write("short.gguf", [&claims.concat()[..], b"key"].concat());
        place.refuses(
            &["eval", "--model", source, "--data", "rows.jsonl"],
            code,
            &[expected],
        );
    };
    check(
        "none",
        1,
        "none does not exist; expected a path, or a hub id: `org/name` or `org/name@revision`",
    );
    check(
        "org/name@main",
        1,
        "error: model `org/name` of the hub, revision `main`: is not in the cache ",
    );
    check(
        "file.txt",
        1,
        "file.txt: is a file; expected a folder in Hugging Face layout",
    );
    check(
        "empty",
        1,
        "empty: holds neither model.safetensors nor model.safetensors.index.json; expected a folder in Hugging Face layout",
    );
    check(
        "model.gguf",
        1,
        "cannot read model.gguf: No such file or directory",
    );
    check(
        "text.gguf",
        1,
        "text.gguf: not a valid GGUF file: it does not begin with `GGUF`",
    );
    check(
        "short.gguf",
        1,
        "short.gguf: not a valid GGUF file: it claims 2305843009213693952 metadata entries, and only 3 bytes follow: is it truncated?",
    );
    check(
        "tinny",
        1,
        "tinny does not exist; expected a path, or a hub id: `org/name` or `org/name@revision`",
    );
    check(
        "weights.bin",
        1,
        "weights.bin: pickled weights are refused, because reading them can run any code; convert them in Python: `CLASS",
    );
}

#[test]
fn pickled_weights() {
    let pickle = |place: &Place| {
        fs::remove_file(place.path(WEIGHTS)).unwrap();
        place.write("model/pytorch_model.bin", b"\x80\x02}q\x00.");
    };
    check(
        pickle,
        "model/pytorch_model.bin: pickled weights are refused, because reading them can run any code; convert them in \
         Python: `CLASS.from_pretrained(folder).save_pretrained(other_folder, safe_serialization=True)`, \
         where CLASS is what transformers calls the one in `architectures` of config.json",
    );
}

#[test]
fn configurations() {
    const CONFIG: &str = "model/config.json";
    let with = |key: &'static str, value: serde_json::Value| {
        move |place: &Place| {
            place.edit_json(CONFIG, |config| drop(config.insert(key.into(), value)))
        }
    };
    let says = |what: &str| format!("{CONFIG}: {what}");
    check(
        with("rms_norm_epss", json!(1e-5)),
        &says("unknown field `rms_norm_epss` with the value 0.00001, did you mean `rms_norm_eps`?"),
    );
    check(
        with("logit_softcap", json!(30.5)),
        &says("unknown field `logit_softcap` with the value 30.5"),
    );
    check(
        with("model_type", json!("lama")),
        &says(
            "unknown `model_type` \"lama\"; supported: bert, llama, mistral, qwen2, roberta, xlm-roberta, did you mean `llama`?",
        ),
    );
    check(
        with("model_type", json!("gemma2")),
        &says(
            "unknown `model_type` \"gemma2\"; supported: bert, llama, mistral, qwen2, roberta, xlm-roberta",
        ),
    );
    check(
        with("hidden_act", json!("gelu")),
        &says("`hidden_act` = \"gelu\" is not yet supported; supported: \"silu\""),
    );
    check(
        with("hidden_size", json!(-4)),
        &says("`hidden_size` is -4, expected an integer above 0"),
    );
    check(
        with("num_hidden_layers", json!(3)),
        "model: tensor `model.layers.2.input_layernorm.weight` is missing",
    );
    check(
        with("vocab_size", json!(u64::MAX)),
        &says("`vocab_size` is 18446744073709551615, expected a size that fits into memory"),
    );
    check(
        with("eos_token_id", json!(61)),
        "the end token 61 is out of range: the model's vocabulary has 61 entries",
    );
    check(
        |place| place.edit_json(CONFIG, |config| drop(config.remove("hidden_size"))),
        &says("`hidden_size` is missing"),
    );
    check(
        |place| place.write(CONFIG, "{\n  \"model_type\": \"llama\",\n  oops\n}"),
        &says("key must be a string at line 3 column 3"),
    );
    check(
        |place| place.write(CONFIG, "[1]"),
        &says("expected a JSON object, found an array"),
    );
    check(
        |place| fs::remove_file(place.path(CONFIG)).unwrap(),
        "cannot read model/config.json: No such file or directory",
    );
}

#[test]
fn every_verb_refuses_a_broken_base_and_writes_nothing() {
    let place = Place::with_model("biased");
    place.copy("cases/gaussian/adapter_init", "adapter");
    place.write(WEIGHTS, file("{", 4));
    place.write(
        "run.toml",
        "[model]\nsource = \"model\"\n[data]\ntrain = [\"rows.jsonl\"]\n[output]\ndir = \"out\"\n",
    );
    let expected =
        ["model/model.safetensors: not a valid safetensors file: its header: EOF while parsing"];
    place.refuses(&["train", "run.toml"], 1, &expected);
    place.refuses(&["inspect", "model"], 1, &expected);
    place.refuses(
        &[
            "merge",
            "--model",
            "model",
            "--adapter",
            "adapter",
            "--out",
            "out",
        ],
        1,
        &expected,
    );
    let logits = ["--logits", "l.safetensors", "--adapter", "adapter"];
    place.refuses(&[&EVAL[..], &logits].concat(), 1, &expected);
}
