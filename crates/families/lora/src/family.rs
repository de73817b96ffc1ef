//! How LoRA attaches, reads what PEFT wrote, and exports.

use crate::config::LoraConfig;
use crate::dora::{Magnitude, RowNorms};
use crate::init::{Base, InitLoraWeights};
use crate::layer::{Layer, joined};
use candle_core::{Device, Tensor};
use lowrank_adapter::{
    Attach, Attachment, Error, Export, Family, Init, Kind, LORA_B, Param, ResidualBase, Result,
    SiteId, Spec,
};
use serde_json::{Value, json};

/// Low-rank adaptation.
#[derive(Debug)]
pub struct Lora;

const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";
/// A₀ and B₀ of a residual start, which checkpoints hold and adapter folders do not.
const A_START: &str = "lora_A_start";
const B_START: &str = "lora_B_start";

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
            ("use_qalora", json!(false)),
            ("velora_config", Value::Null),
        ]
    }

    fn notes() -> &'static [&'static str] {
        &[
            "corda_config",
            "eva_config",
            "loftq_config",
            "lora_ga_config",
        ]
    }

    fn read_as(config: LoraConfig, base: Option<ResidualBase>) -> Result<LoraConfig> {
        let init = config.init_lora_weights;
        let written = init.written();
        let refuse = |what: String| Err(Error::Config { what });
        match (init.base(), base) {
            // How a file's A and B were found is of no use where the base is whole.
            (Base::Whole, _) if !matches!(init, InitLoraWeights::Foreign(_)) => Ok(config),
            (Base::Whole, _) | (_, Some(ResidualBase::Residual)) => Ok(LoraConfig {
                init_lora_weights: InitLoraWeights::Default,
                ..config
            }),
            (Base::Repeatable, Some(ResidualBase::Original)) => Ok(config),
            (Base::Repeatable, None) => refuse(format!(
                "`init_lora_weights = {written}` was saved unconverted, and its tensors mean nothing without knowing the \
                 base: say residual_base = \"original\" (--residual-base original) if the base is the model as it was \
                 before, \"residual\" if it is what the training left of it"
            )),
            (Base::Unrepeatable, None) => refuse(format!(
                "`init_lora_weights = {written}` was saved unconverted, and changed its base in a way that cannot be \
                 repeated: give the base that the training left and say residual_base = \"residual\" \
                 (--residual-base residual)"
            )),
            (Base::Unrepeatable, Some(ResidualBase::Original)) => refuse(format!(
                "`init_lora_weights = {written}` changed its base in a way that cannot be repeated, so that the adapter \
                 cannot be used on the original one: give the base that the training left and say \
                 residual_base = \"residual\" (--residual-base residual)"
            )),
        }
    }

    /// A residual start becomes plain LoRA of twice the rank over the untouched base: s [B, -B₀] [A; A₀].
    fn export(mut export: Export<LoraConfig>) -> Result<Export<LoraConfig>> {
        if !export.config.init_lora_weights.is_residual() {
            return Ok(export);
        }
        let mut tensors = std::mem::take(&mut export.tensors);
        let paths: Vec<String> = tensors
            .iter()
            .filter_map(|(name, _)| name.strip_suffix(&format!(".{A}")).map(str::to_owned))
            .collect();
        for path in paths {
            let of_site = |name: &str| format!("{path}.{name}");
            let position = |name: &str| {
                let name = of_site(name);
                let found = tensors.iter().position(|(known, _)| *known == name);
                found.ok_or(Error::MissingTensor { name })
            };
            let (at_a, at_b) = (position(A)?, position(B)?);
            let (a, b) = joined(
                &tensors[at_a].1,
                &tensors[at_b].1,
                export.scratch(&of_site(A_START))?,
                export.scratch(&of_site(B_START))?,
            )?;
            tensors[at_a].1 = a;
            tensors[at_b].1 = b;
        }
        Ok(Export {
            config: LoraConfig {
                init_lora_weights: InitLoraWeights::Default,
                ..export.config.doubled()?
            },
            tensors,
            scratch: export.scratch,
        })
    }

    fn attach(&self, config: &LoraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        if config.init_lora_weights.is_residual() {
            config.check_doubling()?;
        }
        config.warn_of_unused(cx)?;
        Attachment::per_site(cx, |cx, site| Ok(Box::new(layer(config, cx, site)?)))
    }
}

fn layer(config: &LoraConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let base = cx.site(site).base.clone();
    let (rank, scale) = config.rank_and_scale(&path)?;
    // A file may hold more: PEFT doubles ranks when it converts a residual start.
    cx.check_rank(site, rank)?;
    let init = match config.init_lora_weights {
        init if cx.loads() && !init.is_residual() => InitLoraWeights::Default,
        init => init,
    };
    let start = init.factors(&base, rank, scale, cx.key(site, "lora_init"))?;
    let a = Spec::new(A, (rank, n_in)).rank_axis(0).init(start.a);
    let b = Spec::new(B, (n_out, rank)).rank_axis(1).group(LORA_B);
    let mut layer = Layer {
        a: cx.declare(site, a)?,
        b: cx.declare(site, b.init(start.b))?,
        subtracted: None,
        magnitude: None,
        scale,
        dropout: config.lora_dropout.get(),
        path,
    };
    if let Some((a, b)) = start.subtracted {
        let mut keep = |name: &str, value: Tensor| -> Result<Param> {
            let spec = Spec::new(name, value.shape().clone()).kind(Kind::Scratch);
            cx.declare(site, spec.init(Init::Value(value)))
        };
        layer.subtracted = Some((keep(A_START, a)?, keep(B_START, b)?));
    }
    if config.use_dora {
        let norms = RowNorms::default();
        let mut spec = Spec::new("lora_magnitude_vector", n_out);
        if !cx.loads() {
            let (a, b) = layer.values()?;
            let start = norms.of(&base, &a, &b, scale)?;
            spec = spec.init(Init::Value(Tensor::new(start, &Device::Cpu)?));
        }
        layer.magnitude = Some(Magnitude {
            m: cx.declare(site, spec)?,
            norms,
        });
    } else {
        cx.pair(&layer.a, &layer.b, scale);
    }
    Ok(layer)
}
