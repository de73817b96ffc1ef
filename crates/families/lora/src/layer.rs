//! One adapted layer, and how LoRA attaches.

use crate::config::{InitLoraWeights, LoraConfig};
use candle_core::Tensor;
use lowrank_adapter::{
    Adapter, Attach, Attachment, Error, Family, Init, LowRank, Merge, Param, Pass, Result, Spec,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::{self as ops, rng::Purpose};
use serde_json::{Value, json};

/// Low-rank adaptation.
#[derive(Debug)]
pub struct Lora;

#[derive(Debug)]
struct Layer {
    a: Param,
    b: Param,
    scale: f64,
    dropout: f64,
    /// Keys the dropout mask.
    path: String,
}

impl Family for Lora {
    type Config = LoraConfig;
    const NAME: &'static str = "lora";

    fn fixed() -> Vec<(&'static str, Value)> {
        vec![
            ("alora_invocation_tokens", Value::Null),
            ("arrow_config", Value::Null),
            ("corda_config", Value::Null),
            ("ensure_weight_tying", json!(false)),
            ("eva_config", Value::Null),
            ("kasa_config", Value::Null),
            ("layer_replication", Value::Null),
            ("loftq_config", json!({})),
            ("lora_bias", json!(false)),
            ("lora_ga_config", Value::Null),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("monteclora_config", Value::Null),
            ("qalora_group_size", json!(16)),
            ("target_parameters", Value::Null),
            ("trainable_token_indices", Value::Null),
            ("use_bdlora", Value::Null),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("velora_config", Value::Null),
        ]
    }

    fn attach(&self, config: &LoraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        Attachment::per_site(cx, |cx, site| {
            let (n_out, n_in) = cx.site(site).dims();
            let path = cx.site(site).path.clone();
            let (rank, scale) = config.rank_and_scale(&path)?;
            if rank > n_out.min(n_in) {
                return Err(Error::RankTooLarge { rank, n_out, n_in });
            }
            let (start_a, start_b) = match config.init_lora_weights {
                InitLoraWeights::Default => (Init::KaimingUniform, Init::Zeros),
                InitLoraWeights::Random => (Init::KaimingUniform, Init::KaimingUniform),
                InitLoraWeights::Gaussian => {
                    let std = 1.0 / rank as f64;
                    (Init::Normal { std }, Init::Zeros)
                }
            };
            let a = Spec::new("lora_A.weight", (rank, n_in)).rank_axis(0);
            let b = Spec::new("lora_B.weight", (n_out, rank)).rank_axis(1);
            Ok(Box::new(Layer {
                a: cx.declare(site, a.init(start_a))?,
                b: cx.declare(site, b.init(start_b))?,
                scale,
                dropout: config.lora_dropout.get(),
                path,
            }))
        })
    }
}

impl Layer {
    fn dropped(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        if self.dropout == 0.0 || !pass.training() {
            return Ok(x.clone());
        }
        let key = pass.rng().purpose(Purpose::Dropout).site(&self.path);
        Ok(ops::dropout(x, self.dropout, key)?)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let dropped = self.dropped(x, pass)?;
        let h = (ops::linear(&dropped, &self.a.get(pass), None)? * self.scale)?;
        Ok(base.forward_plus(x, &h, &self.b.get(pass))?)
    }

    fn delta(&self, _: &FrozenLinear, x: &Tensor, _: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let dropped = self.dropped(x, pass)?;
        let (a, b) = (self.a.get(pass), self.b.get(pass));
        Ok(ops::low_rank(&dropped, &a, &b, self.scale)?)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let update = self.b.get(pass).matmul(&self.a.get(pass))?;
        Ok(Merge::Exact(
            ops::add_scaled(weight, &update, self.scale)?.into(),
        ))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        Ok(Some(LowRank {
            a: self.a.value(),
            b: self.b.value(),
            scale: self.scale,
        }))
    }
}
