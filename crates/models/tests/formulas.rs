//! The whole forward pass against the formulas, written as plain loops in f64.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{
    Memory, assert_near, config, evaluate, logits, model, plain, rectangle, rich, text, with,
};
use lowrank_adapter::Ask;
use lowrank_models::{Llama, LlamaConfig, Precision};
use lowrank_ops::RotaryScaling;
use serde_json::{Value, json};
use std::f64::consts::PI;

type Matrix = Vec<Vec<f64>>;

struct Formulas<'a> {
    config: &'a LlamaConfig,
    weights: &'a Memory,
}

impl Formulas<'_> {
    fn vector(&self, name: &str) -> Vec<f64> {
        self.weights.0[name].to_vec1().unwrap()
    }

    fn matrix(&self, name: &str) -> Matrix {
        self.weights.0[name].to_vec2().unwrap()
    }

    /// y[o] = sum over i of w[o][i] x[i], plus the bias if there is one.
    fn linear(&self, path: &str, x: &Matrix) -> Matrix {
        let weight = self.matrix(&format!("{path}.weight"));
        let bias = self.weights.0.get(&format!("{path}.bias"));
        let bias: Option<Vec<f64>> = bias.map(|bias| bias.to_vec1().unwrap());
        let product = |x: &Vec<f64>, o: usize| -> f64 {
            let shift = bias.as_ref().map_or(0.0, |bias| bias[o]);
            shift + weight[o].iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
        };
        x.iter()
            .map(|x| (0..weight.len()).map(|o| product(x, o)).collect())
            .collect()
    }

    fn norm(&self, path: &str, x: &Matrix) -> Matrix {
        let weight = self.vector(&format!("{path}.weight"));
        let normed = |x: &Vec<f64>| -> Vec<f64> {
            let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let root = (square + self.config.rms_norm_eps).sqrt();
            x.iter().zip(&weight).map(|(x, w)| w * x / root).collect()
        };
        x.iter().map(normed).collect()
    }

    fn frequency(&self, pair: usize) -> f64 {
        let exponent = 2.0 * pair as f64 / self.config.head_dim as f64;
        let frequency = 1.0 / self.config.rope_theta.powf(exponent);
        match self.config.rope_scaling {
            RotaryScaling::None => frequency,
            RotaryScaling::Linear { factor } => frequency / factor,
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            } => {
                let turns = context as f64 * frequency / (2.0 * PI);
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (smooth + (1.0 - smooth) / factor)
            }
        }
    }

    fn rotate(&self, head: &[f64], position: usize) -> Vec<f64> {
        let half = head.len() / 2;
        let mut turned = vec![0.0; head.len()];
        for pair in 0..half {
            let (sin, cos) = (position as f64 * self.frequency(pair)).sin_cos();
            turned[pair] = head[pair] * cos - head[pair + half] * sin;
            turned[pair + half] = head[pair + half] * cos + head[pair] * sin;
        }
        turned
    }

    fn attention(&self, path: &str, x: &Matrix) -> Matrix {
        let [q, k, v] = ["q", "k", "v"].map(|name| self.linear(&format!("{path}.{name}_proj"), x));
        let (d, group) = (
            self.config.head_dim,
            self.config.num_attention_heads / self.config.num_key_value_heads,
        );
        let mut joined = vec![Vec::new(); x.len()];
        for head in 0..self.config.num_attention_heads {
            let (own, shared) = (
                head * d..(head + 1) * d,
                head / group * d..(head / group + 1) * d,
            );
            for (at, joined) in joined.iter_mut().enumerate() {
                let query = self.rotate(&q[at][own.clone()], at);
                let scores = (0..=at).map(|other| {
                    let key = self.rotate(&k[other][shared.clone()], other);
                    query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt()
                });
                let weights: Vec<f64> = scores.map(f64::exp).collect();
                let total: f64 = weights.iter().sum();
                for column in shared.clone() {
                    let mix = weights.iter().zip(&v).map(|(w, v)| w * v[column]);
                    joined.push(mix.sum::<f64>() / total);
                }
            }
        }
        self.linear(&format!("{path}.o_proj"), &joined)
    }

    fn feed_forward(&self, path: &str, x: &Matrix) -> Matrix {
        let gate = self.linear(&format!("{path}.gate_proj"), x);
        let up = self.linear(&format!("{path}.up_proj"), x);
        let gated = |(gate, up): (&Vec<f64>, &Vec<f64>)| -> Vec<f64> {
            gate.iter()
                .zip(up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect()
        };
        self.linear(
            &format!("{path}.down_proj"),
            &gate.iter().zip(&up).map(gated).collect(),
        )
    }

    fn logits(&self, text: &[u32]) -> Matrix {
        let table = self.matrix("model.embed_tokens.weight");
        let mut h: Matrix = text.iter().map(|id| table[*id as usize].clone()).collect();
        for i in 0..self.config.num_hidden_layers {
            let path = format!("model.layers.{i}");
            let x = self.norm(&format!("{path}.input_layernorm"), &h);
            h = sum(h, self.attention(&format!("{path}.self_attn"), &x));
            let x = self.norm(&format!("{path}.post_attention_layernorm"), &h);
            h = sum(h, self.feed_forward(&format!("{path}.mlp"), &x));
        }
        let head = if self.config.tie_word_embeddings {
            "model.embed_tokens"
        } else {
            "lm_head"
        };
        self.linear(head, &self.norm("model.norm", &h))
    }
}

fn sum(x: Matrix, y: Matrix) -> Matrix {
    let rows = x.into_iter().zip(y);
    rows.map(|(x, y)| x.into_iter().zip(y).map(|(x, y)| x + y).collect())
        .collect()
}

fn variants() -> Vec<Value> {
    let unscaled = json!({"rope_parameters": null, "head_dim": null, "num_attention_heads": 5, "num_key_value_heads": 1});
    vec![
        rich(),
        plain(),
        with(rich(), unscaled),
        with(
            plain(),
            json!({"attention_bias": true, "num_key_value_heads": null}),
        ),
        with(
            plain(),
            json!({"mlp_bias": true, "tie_word_embeddings": true, "rope_scaling": null}),
        ),
    ]
}

#[test]
fn logits_are_those_of_the_formulas() {
    for (seed, json) in (5..).zip(variants()) {
        let (model, weights) = model(&json, seed);
        let config = model.config();
        let text = text(17, config.vocab_size as u64, seed);
        let formulas = Formulas {
            config,
            weights: &weights,
        };
        let expected = formulas.logits(&text);
        assert_near(&logits(&model, &text), &expected, 1e-11);
        // The weights are large enough for the numbers to differ.
        assert!((expected[3][4] - expected[9][4]).abs() > 1e-3, "{json}");
    }
}

#[test]
fn losses_are_those_of_the_formulas() {
    for (seed, json) in (50..).zip(variants()) {
        let (model, weights) = model(&json, seed);
        let config = model.config();
        let formulas = Formulas {
            config,
            weights: &weights,
        };
        let texts = [9, 13, 4].map(|length| text(length, config.vocab_size as u64, length as u64));
        let mut expected = Vec::new();
        for text in &texts {
            let logits = formulas.logits(text);
            for (logits, next) in logits.iter().zip(&text[1..]) {
                let total: f64 = logits.iter().map(|x| x.exp()).sum();
                expected.push(total.ln() - logits[*next as usize]);
            }
        }
        let losses = evaluate(&model, &rectangle(&texts, 13), &Ask::Losses);
        assert_near(&[losses.to_vec1().unwrap()], &[expected], 1e-11);
    }
}

#[test]
fn single_precision_is_near_double() {
    let json = rich();
    let (double, weights) = model(&json, 77);
    let single = Llama::new(
        config(&json),
        &weights,
        Precision::Cast(candle_core::DType::F32),
    )
    .unwrap();
    let text = text(30, 29, 77);
    assert_near(&logits(&single, &text), &logits(&double, &text), 1e-4);
}
