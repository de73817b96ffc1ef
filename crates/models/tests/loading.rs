//! Building a model from a checkpoint: what is refused, and what memory is shared.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{Memory, assert_near, config, logits, object, plain, rich, rows, text, with};
use lowrank_adapter::{Ask, Batch, Model, Part, Pass, Selection, run};
use lowrank_frozen::{Result as FrozenResult, TensorInfo, Weights};
use lowrank_models::{Head, Llama, Precision, load};
use lowrank_ops::data;
use serde_json::{Value, json};

fn weights(json: &Value) -> Memory {
    Memory::random(&config(json), 41)
}

fn refused(json: &Value, weights: &dyn Weights, precision: Precision) -> String {
    let error = load(
        object(json),
        "config.json",
        weights,
        precision,
        Head::Language,
    );
    error.map(|_| ()).unwrap_err().to_string()
}

fn changed(json: &Value, name: &str, tensor: Option<Tensor>) -> Memory {
    let mut weights = weights(json);
    match tensor {
        Some(tensor) => weights.0.insert(name.to_owned(), tensor),
        None => weights.0.remove(name),
    };
    weights
}

fn zeros(dims: &[usize], dtype: DType) -> Option<Tensor> {
    Some(Tensor::zeros(dims, dtype, &Device::Cpu).unwrap())
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let gate = "model.layers.1.mlp.gate_proj.weight";
    let missing = |name: &str| format!("memory: tensor `{name}` is missing");
    for (weights, message) in [
        (changed(&plain(), gate, None), missing(gate)),
        (changed(&plain(), "lm_head.weight", None), missing("lm_head.weight")),
        (
            changed(&plain(), gate, zeros(&[24, 34], DType::F64)),
            format!("memory: tensor `{gate}` has shape [24, 34], expected [34, 24]"),
        ),
        (
            changed(&plain(), "model.norm.weight", zeros(&[24, 1], DType::F64)),
            "memory: tensor `model.norm.weight` has shape [24, 1], expected [24]".into(),
        ),
        (
            changed(&plain(), "model.layers.2.self_attn.q_proj.bias", zeros(&[24], DType::F64)),
            "memory: tensor `model.layers.2.self_attn.q_proj.bias` is used by no part of the model that config.json \
             describes"
                .into(),
        ),
        (
            changed(&plain(), "model.layers.3.input_layernorm.weight", zeros(&[24], DType::F64)),
            "memory: tensor `model.layers.3.input_layernorm.weight` is used by no part of the model that config.json \
             describes"
                .into(),
        ),
        (
            changed(&plain(), gate, zeros(&[34, 24], DType::BF16)),
            format!(
                "memory: tensor `{gate}` is stored as bf16, which is not yet supported; the tensors before it have \
                 another dtype; use dtype = \"f32\""
            ),
        ),
        (
            changed(&plain(), gate, zeros(&[34, 24], DType::I64)),
            format!("memory: tensor `{gate}` is stored as i64, which is not yet supported; use dtype = \"f32\""),
        ),
        (
            changed(&plain(), gate, zeros(&[34, 24], DType::F32)),
            format!(
                "memory: tensor `{gate}` is stored as f32, which is not yet supported; the tensors before it have \
                 another dtype; use dtype = \"f32\""
            ),
        ),
    ] {
        assert_eq!(refused(&plain(), &weights, Precision::AsStored), message);
    }
}

#[test]
fn missing_biases_are_refused() {
    let name = "model.layers.0.mlp.down_proj.bias";
    let weights = changed(&rich(), name, None);
    assert_eq!(
        refused(&rich(), &weights, Precision::AsStored),
        format!("memory: tensor `{name}` is missing")
    );
}

#[test]
fn layers_that_are_claimed_and_not_there_end_in_an_error() {
    let json = with(plain(), json!({"num_hidden_layers": 1u64 << 50}));
    assert_eq!(
        refused(&json, &weights(&plain()), Precision::AsStored),
        "memory: tensor `model.layers.3.input_layernorm.weight` is missing"
    );
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let name = "model.layers.0.post_attention_layernorm.weight";
    for (bad, precision, dtype) in [
        (f64::NAN, Precision::AsStored, "f64"),
        (f64::NEG_INFINITY, Precision::AsStored, "f64"),
        (1e300, Precision::Cast(DType::F32), "f32"),
    ] {
        let mut numbers = vec![0.5; 24];
        numbers[13] = bad;
        let weights = changed(
            &plain(),
            name,
            Some(Tensor::new(numbers, &Device::Cpu).unwrap()),
        );
        assert_eq!(
            refused(&plain(), &weights, precision),
            format!("memory: tensor `{name}` holds a value that is not finite in {dtype}")
        );
    }
}

#[test]
fn precisions_that_are_not_built_are_refused() {
    assert_eq!(
        refused(&plain(), &weights(&plain()), Precision::Cast(DType::U8)),
        "weights cannot be held in u8; use dtype = \"f32\""
    );
    let gate = "model.layers.0.mlp.gate_proj.weight";
    let weights = changed(&plain(), gate, zeros(&[34, 24], DType::U8));
    assert_eq!(
        refused(&plain(), &weights, Precision::Cast(DType::F32)),
        format!(
            "memory: tensor `{gate}` is stored as u8, which is not yet supported; expected f32, f64, f16 or bf16"
        )
    );
}

#[test]
fn a_cast_reads_every_storage() {
    let json = rich();
    let text = text(9, 29, 5);
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let stored = weights(&json).cast(dtype);
        // The numbers that are stored, in f64: what the cast must give.
        let exact =
            Llama::new(config(&json), &stored.cast(DType::F64), Precision::AsStored).unwrap();
        let cast = Llama::new(config(&json), &stored, Precision::Cast(DType::F64)).unwrap();
        assert_eq!(logits(&cast, &text), logits(&exact, &text));
    }
}

#[test]
fn halves_are_held_as_stored_and_computed_in_f32() {
    let json = rich();
    let text = text(9, 29, 5);
    for dtype in [DType::F16, DType::BF16] {
        let stored = weights(&json).cast(dtype);
        let exact =
            Llama::new(config(&json), &stored.cast(DType::F64), Precision::AsStored).unwrap();
        let mut held = Llama::new(config(&json), &stored, Precision::AsStored).unwrap();
        assert_near(&logits(&held, &text), &logits(&exact, &text), 1e-4);
        held.parts(&mut |part| match part {
            Part::Linear(linear) | Part::Head(linear) => {
                assert_eq!(linear.base().encoding(), Some(dtype.into()));
                assert_eq!(linear.base().dtype(), DType::F32);
            }
            Part::Embedding(embedding) => assert_eq!(embedding.weight.dtype(), DType::F32),
            Part::Norm(norm) => assert_eq!(norm.weight.base().unwrap().dtype(), DType::F32),
        });
        // Asked for, the matrices are rounded and what is no matrix is not.
        let mut matrices = weights(&json);
        for tensor in matrices.0.values_mut().filter(|tensor| tensor.rank() == 2) {
            *tensor = tensor
                .to_dtype(dtype)
                .unwrap()
                .to_dtype(DType::F64)
                .unwrap();
        }
        let exact = Llama::new(config(&json), &matrices, Precision::AsStored).unwrap();
        let cast = Llama::new(config(&json), &weights(&json), Precision::Cast(dtype)).unwrap();
        assert_near(&logits(&cast, &text), &logits(&exact, &text), 1e-4);
    }
    let mut large = weights(&json);
    let name = "model.layers.1.mlp.up_proj.weight";
    let doubled = (large.0[name].ones_like().unwrap() * 1e5).unwrap();
    large.0.insert(name.into(), doubled);
    assert_eq!(
        refused(&json, &large, Precision::Cast(DType::F16)),
        format!("memory: tensor `{name}` holds a value that is not finite in f16")
    );
}

#[test]
fn tensors_that_transformers_ignores_are_ignored() {
    let json = rich();
    let mut weights = weights(&json);
    let text = text(9, 29, 6);
    let expected = logits(
        &Llama::new(config(&json), &weights, Precision::AsStored).unwrap(),
        &text,
    );
    for (name, dims) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", &[4][..]),
        ("model.rotary_emb.inv_freq", &[4]),
    ] {
        weights
            .0
            .insert(name.into(), zeros(dims, DType::F32).unwrap());
    }
    let model = Llama::new(config(&json), &weights, Precision::AsStored).unwrap();
    assert_eq!(logits(&model, &text), expected);
}

/// Where the numbers of a tensor lie.
fn address(tensor: &Tensor) -> usize {
    data::<f32>(tensor).unwrap().as_ptr() as usize
}

#[test]
fn the_model_holds_what_was_read_and_no_copy() {
    for json in [plain(), rich()] {
        let weights = weights(&json).cast(DType::F32);
        let mut model = Llama::new(config(&json), &weights, Precision::AsStored).unwrap();
        let mut seen = 0;
        let mut check = |name: String, tensor: &Tensor| {
            assert_eq!(address(tensor), address(&weights.0[&name]), "{name}");
            seen += 1;
        };
        model.parts(&mut |part| match part {
            Part::Embedding(embedding) => check(
                embedding.weight.name().into(),
                &embedding.weight.base().unwrap(),
            ),
            Part::Norm(norm) => check(norm.weight.name().into(), &norm.weight.base().unwrap()),
            Part::Linear(linear) | Part::Head(linear) => {
                let home = linear.tied_to().unwrap_or(linear.path()).to_owned();
                check(format!("{home}.weight"), &linear.base().weight().unwrap());
                if let Some(bias) = linear.base().bias() {
                    check(format!("{home}.bias"), bias);
                }
            }
        });
        assert_eq!(seen, weights.0.len() + usize::from(json == rich()));
    }
}

/// A checkpoint whose reader fails.
struct Broken(Memory);

impl Weights for Broken {
    fn names(&self) -> Vec<&str> {
        self.0.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.info(name)
    }

    fn tensor(&self, name: &str) -> FrozenResult<Tensor> {
        Err(lowrank_frozen::Error::Read(format!(
            "file.safetensors: {name} is cut off"
        )))
    }

    fn origin(&self) -> String {
        self.0.origin()
    }
}

#[test]
fn what_the_reader_says_arrives() {
    assert_eq!(
        refused(&plain(), &Broken(weights(&plain())), Precision::AsStored),
        "file.safetensors: model.embed_tokens.weight is cut off"
    );
}

#[test]
fn a_model_is_found_by_its_type() {
    let json = plain();
    let weights = weights(&json);
    let loaded = load(
        object(&json),
        "config.json",
        &weights,
        Precision::AsStored,
        Head::Language,
    )
    .unwrap();
    assert_eq!(loaded.model_type(), "llama");
    assert_eq!(loaded.blocks(), 3);
    let direct = Llama::new(config(&json), &weights, Precision::AsStored).unwrap();
    let batch = Batch::sequence(&[3, 1, 20], 0).unwrap();
    let mut pass = Pass::evaluation(Selection::none());
    let ask = Ask::Logits(vec![0, 1, 2]);
    let got = rows(&run(&*loaded, &batch, &ask, None, &mut pass).unwrap());
    assert_eq!(got, logits(&direct, &[3, 1, 20]));
}
