//! Linear layers in NF4.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{Memory, assert_near, config, logits, object, plain, rich, text};
use lowrank_adapter::{Model, Part};
use lowrank_frozen::{Encoding, Nf4, Result as FrozenResult, Stored, TensorInfo, Weights};
use lowrank_models::{Head, Llama, Precision, load};
use serde_json::Value;

const NF4: Precision = Precision::Nf4 { double: true };

fn weights(json: &Value, dtype: DType) -> Memory {
    Memory::random(&config(json), 43).cast(dtype)
}

fn is_layer(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

fn quantised(tensor: &Tensor, double: bool) -> Stored {
    let numbers = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    let numbers = Nf4::quantise(&numbers.to_vec1().unwrap(), double).unwrap();
    Stored::nf4(numbers, tensor.dims2().unwrap()).unwrap()
}

#[test]
fn layers_are_quantised_and_the_rest_is_not() {
    for (json, columns) in [(plain(), 23), (rich(), 29)] {
        let text = text(9, columns, 5);
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            for double in [false, true] {
                let stored = weights(&json, dtype);
                // The same numbers, dense.
                let mut dense = weights(&json, dtype).cast(DType::F32);
                for (name, tensor) in &mut dense.0 {
                    if is_layer(name) {
                        *tensor = quantised(&stored.0[name], double).to_dense().unwrap();
                    }
                }
                let expected = Llama::new(config(&json), &dense, Precision::AsStored).unwrap();
                let precision = Precision::Nf4 { double };
                let mut model = Llama::new(config(&json), &stored, precision).unwrap();
                assert_near(&logits(&model, &text), &logits(&expected, &text), 1e-5);
                let table = match dtype {
                    DType::F64 => DType::F32,
                    dtype => dtype,
                };
                model.parts(&mut |part| match part {
                    Part::Linear(linear) => {
                        let base = linear.base();
                        assert_eq!(base.encoding(), Some(Encoding::Nf4 { double }));
                        assert_eq!(base.dtype(), DType::F32);
                    }
                    Part::Head(linear) => {
                        assert_eq!(linear.base().encoding(), Some(table.into()));
                    }
                    Part::Embedding(embedding) => {
                        assert_eq!(embedding.weight.dtype(), DType::F32);
                        let (numbers, size) =
                            (embedding.weight.elem_count(), table.size_in_bytes());
                        assert_eq!(embedding.weight.bytes(), numbers * size);
                    }
                    Part::Norm(norm) => {
                        assert_eq!(norm.weight.base().unwrap().dtype(), DType::F32);
                    }
                });
            }
        }
    }
}

/// The layers of a checkpoint that brings them in NF4.
struct Brought(Memory);

impl Weights for Brought {
    fn names(&self) -> Vec<&str> {
        self.0.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let info = self.0.info(name)?;
        let encoding = match is_layer(name) {
            true => Encoding::Nf4 { double: false },
            false => info.encoding,
        };
        Some(TensorInfo { encoding, ..info })
    }

    fn tensor(&self, name: &str) -> FrozenResult<Tensor> {
        match is_layer(name) {
            true => self.stored(name)?.to_dense(),
            false => self.0.tensor(name),
        }
    }

    fn stored(&self, name: &str) -> FrozenResult<Stored> {
        match is_layer(name) {
            true => Ok(quantised(&self.0.tensor(name)?, false)),
            false => self.0.stored(name),
        }
    }

    fn origin(&self) -> String {
        self.0.origin()
    }
}

#[test]
fn what_is_nf4_already_is_not_quantised_again() {
    let json = plain();
    let text = text(9, 23, 5);
    let brought = Brought(weights(&json, DType::BF16));
    let single = Precision::Nf4 { double: false };
    let expected = Llama::new(config(&json), &brought.0, single).unwrap();
    for precision in [Precision::AsStored, NF4, Precision::Cast(DType::F32)] {
        let mut model = Llama::new(config(&json), &brought, precision).unwrap();
        assert_near(&logits(&model, &text), &logits(&expected, &text), 1e-5);
        let encoding = match precision {
            Precision::Cast(dtype) => dtype.into(),
            _ => Encoding::Nf4 { double: false },
        };
        model.parts(&mut |part| {
            if let Part::Linear(linear) = part {
                assert_eq!(linear.base().encoding(), Some(encoding));
            }
        });
    }
}

#[test]
fn what_cannot_be_quantised_is_refused_by_name() {
    let refused = |name: &str, bad: f64| {
        let mut weights = weights(&plain(), DType::F64);
        let dims = weights.0[name].dims2().unwrap();
        let mut numbers = vec![0.25; dims.0 * dims.1];
        numbers[71] = bad;
        let tensor = Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap();
        weights.0.insert(name.into(), tensor);
        let error = load(
            object(&plain()),
            "config.json",
            &weights,
            NF4,
            Head::Language,
        );
        error.map(|_| ()).unwrap_err().to_string()
    };
    let layer = "model.layers.1.mlp.up_proj.weight";
    for bad in [f64::NAN, f64::INFINITY, 1e300] {
        assert_eq!(
            refused(layer, bad),
            format!("memory: tensor `{layer}` holds a value that is not finite in nf4")
        );
    }
    assert_eq!(
        refused("lm_head.weight", 1e300),
        "memory: tensor `lm_head.weight` holds a value that is not finite in f32"
    );
}
