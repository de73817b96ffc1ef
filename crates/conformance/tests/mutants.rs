//! Every law can fail: families with one fault each are caught by the law that is there for it.

use candle_core::{DType, Tensor};
use lowrank_adapter::{
    Adapter, AnyFamily, Attach, Attachment, Chain, Controller, Family, Init, Merge, Outcome, Param,
    Pass, Probe, Records, Result, SiteId, Spec, State, Step,
};
use lowrank_conformance::families::{Gated, GatedConfig};
use lowrank_conformance::{ALL, Law, check, declaring};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::Purpose;
use lowrank_ops::{self as ops, Grads};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Fault {
    #[default]
    None,
    StartsOffBase,
    StartsAtBase,
    StartsTheSame,
    DetachedB,
    TurnedGradient,
    NaNGradient,
    DrawsNewNoise,
    ForgetsCarry,
    DropsInEvaluation,
    MixesTokens,
    LeaksOverSegments,
    PositionsRunOn,
    CountsPadding,
    MergeForgetsScale,
    MergeGivesUp,
    DeltaForgetsScale,
    DeclaresNow,
    HidesItsSites,
    KeepsToItself,
    OneStorage,
    IgnoresMask,
}

/// A number that becomes another one when it is saved.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Lossy(f64);

impl Serialize for Lossy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.0 / 2.0).serialize(serializer)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct FaultyConfig {
    fault: Fault,
    lossy: Lossy,
}

const RANK: usize = 2;
const SCALE: f64 = 1.5;

/// How often 18 layers are called by two forward passes, one that keeps its graph and one that does not: what comes
/// after is the recomputation.
const FORWARD_CALLS: u64 = 36;

struct Faulty;

#[derive(Debug)]
struct Layer {
    fault: Fault,
    site: SiteId,
    path: String,
    a: Param,
    b: Param,
    chain: Chain,
    hidden: f64,
    calls: Arc<AtomicU64>,
}

/// What attaching counts, so that two attachments can differ.
static ATTACHED: AtomicU64 = AtomicU64::new(0);

impl Family for Faulty {
    type Config = FaultyConfig;
    const NAME: &'static str = "faulty";

    fn attach(&self, config: &FaultyConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        let fault = config.fault;
        let count = ATTACHED.fetch_add(1, Ordering::Relaxed);
        let chain = cx.chain();
        let calls = Arc::new(AtomicU64::new(0));
        Attachment::per_site(cx, |cx, site| {
            let (n_out, n_in) = cx.site(site).dims();
            let name = match fault {
                Fault::HidesItsSites => "down",
                _ => "lora_A.weight",
            };
            let a = Spec::new(name, (RANK, n_in)).rank_axis(0);
            let a = a.init(match fault {
                Fault::StartsTheSame => Init::Ones,
                _ => Init::KaimingUniform,
            });
            let b = Spec::new("lora_B.weight", (n_out, RANK)).rank_axis(1);
            let b = b.init(match fault {
                Fault::StartsOffBase => Init::Normal { std: 0.2 },
                _ => Init::Zeros,
            });
            let layer = Layer {
                fault,
                site,
                path: cx.site(site).path.clone(),
                a: cx.declare(site, a)?,
                b: cx.declare(site, b)?,
                chain: chain.clone(),
                hidden: 1.0 + count as f64,
                calls: Arc::clone(&calls),
            };
            if fault == Fault::DeclaresNow && count.is_multiple_of(2) {
                cx.declare(site, Spec::new("extra", 3))?;
            }
            if fault == Fault::IgnoresMask {
                cx.gate(site, RANK)?;
            }
            Ok(Box::new(layer))
        })
    }
}

impl Layer {
    fn scale(&self) -> f64 {
        match self.fault {
            Fault::KeepsToItself => self.hidden,
            _ => SCALE,
        }
    }

    fn update(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let (a, b) = (self.a.get(pass), self.b.get(pass));
        let b = match self.fault {
            Fault::DetachedB => b.detach(),
            // The value of b with its gradient turned around.
            Fault::TurnedGradient => ((b.detach() * 2.0)? - b)?,
            Fault::NaNGradient => {
                // A zero whose gradient is 0 / 0.
                let zero = (&b - b.detach())?;
                (b + zero.sqr()?.sqrt()?)?
            }
            _ => b,
        };
        let x = match self.fault {
            Fault::DrawsNewNoise if pass.training() => {
                let key = pass.rng().purpose(Purpose::Dropout).site(&self.path);
                ops::dropout(x, 0.25, key.step(calls / FORWARD_CALLS))?
            }
            Fault::DropsInEvaluation => {
                ops::dropout(x, 0.25, pass.rng().purpose(Purpose::Dropout))?
            }
            Fault::MixesTokens if x.rank() == 3 => {
                x.broadcast_add(&x.mean_keepdim(1)?)?.contiguous()?
            }
            // The token before, whichever text it belongs to.
            Fault::LeaksOverSegments if x.rank() == 3 => {
                let (start, before) = (x.narrow(1, 0, 1)?, x.dim(1)? - 1);
                let shifted = [start.zeros_like()?, x.narrow(1, 0, before)?];
                (x + Tensor::cat(&shifted, 1)?)?
            }
            // The place in the row, where the place in the text is meant.
            Fault::PositionsRunOn if x.rank() == 3 => {
                let places = Tensor::arange(0, x.dim(1)? as u32, x.device())?;
                let places = places.to_dtype(x.dtype())?.reshape((1, (), 1))?;
                x.broadcast_mul(&((places * 0.1)? + 1.0)?)?
            }
            Fault::OneStorage => x.to_dtype(DType::F64)?,
            _ => x.clone(),
        };
        if self.fault == Fault::CountsPadding && pass.training() {
            pass.record(self.site, "mean", &x.sqr()?.mean_all()?);
        }
        let mut update = ops::low_rank(&x, &a, &b, self.scale())?;
        if self.fault == Fault::ForgetsCarry {
            let factor = pass.carry(&self.chain).pop();
            if let Some(factor) = factor
                && calls < FORWARD_CALLS
            {
                update = update.broadcast_mul(&factor)?;
            }
            let sum = (ops::sum_all(&a)? + 1.0)?;
            pass.carry(&self.chain).push(sum);
        }
        Ok(update)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let y = base.forward(x)?;
        if self.fault == Fault::StartsAtBase && !pass.training() {
            return Ok(y);
        }
        Ok((y + self.update(x, pass)?)?)
    }

    fn delta(
        &self,
        _base: &FrozenLinear,
        x: &Tensor,
        _y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let update = self.update(x, pass)?;
        Ok(match self.fault {
            Fault::DeltaForgetsScale => (update / SCALE)?,
            _ => update,
        })
    }

    fn merge(&self, weight: &Tensor, _bias: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let update = self.b.get(pass).matmul(&self.a.get(pass))?;
        let scale = match self.fault {
            Fault::MergeGivesUp => return Ok(Merge::InputDependent { why: "a fault" }),
            Fault::MergeForgetsScale => 1.0,
            _ => self.scale(),
        };
        Ok(Merge::Exact(
            ops::add_scaled(weight, &update, scale)?.into(),
        ))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Lapse {
    #[default]
    None,
    MisstatesBudget,
    StatesNoBudget,
    RevivesHalf,
    ConcealsRevivals,
    RevivesTheOld,
    NeverMasks,
    LosesState,
    ForgetsTensors,
    WrongPenalty,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct LapsingConfig {
    lapse: Lapse,
}

/// [`Gated`] with a controller that lapses.
struct Lapsing;

#[derive(Debug)]
struct Forgetful {
    lapse: Lapse,
    inner: Box<dyn Controller>,
    params: Vec<Param>,
}

impl Family for Lapsing {
    type Config = LapsingConfig;
    const NAME: &'static str = "lapsing";

    fn attach(&self, config: &LapsingConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        let mut gated = GatedConfig::default();
        match config.lapse {
            Lapse::NeverMasks => gated.mask_at.clear(),
            // By score right after the run was interrupted, when none has been learnt anew.
            Lapse::ForgetsTensors => (gated.mask_at, gated.revive_at) = (vec![3, 6], vec![9]),
            _ => {}
        }
        let mut attachment = Family::attach(&Gated, &gated, cx)?;
        let site = cx.site_ids().next().expect("a site");
        let params = match config.lapse {
            Lapse::WrongPenalty => vec![cx.declare(site, Spec::new("lonely", 3))?],
            _ => Vec::new(),
        };
        attachment.controller = attachment.controller.map(|inner| {
            let forgetful = Forgetful {
                lapse: config.lapse,
                inner,
                params,
            };
            Box::new(forgetful) as Box<dyn Controller>
        });
        Ok(attachment)
    }
}

impl Controller for Forgetful {
    fn penalty(&self, step: Step, pass: &Pass) -> Result<Option<Tensor>> {
        match self.params.first() {
            // A factor that is not part of the graph.
            Some(lonely) => {
                let (value, outside) = (lonely.get(pass), lonely.value());
                Ok(Some(ops::sum_all(&(value * outside)?)?))
            }
            None => self.inner.penalty(step, pass),
        }
    }

    fn observe(&mut self, step: Step, records: &Records) -> Result<()> {
        self.inner.observe(step, records)
    }

    fn after_backward(&mut self, step: Step, grads: &mut Grads) -> Result<()> {
        self.inner.after_backward(step, grads)
    }

    fn after_update(
        &mut self,
        step: Step,
        grads: &Grads,
        probe: &mut dyn Probe,
    ) -> Result<Outcome> {
        let old: Vec<_> = grads
            .iter()
            .map(|(param, _)| Ok((param.clone(), param.snapshot()?)))
            .collect::<Result<_>>()?;
        let mut revivals = self.inner.after_update(step, grads, probe)?.revivals;
        match self.lapse {
            Lapse::RevivesHalf => drop(revivals.pop()),
            Lapse::ConcealsRevivals => revivals.truncate(2),
            Lapse::RevivesTheOld if !revivals.is_empty() => {
                for (param, value) in old {
                    param.set(&value)?;
                }
            }
            _ => {}
        }
        Ok(revivals.into())
    }

    fn budget(&self) -> Option<usize> {
        let budget = self.inner.budget()?;
        match self.lapse {
            Lapse::MisstatesBudget => Some(budget + 1),
            Lapse::StatesNoBudget => None,
            _ => Some(budget),
        }
    }

    fn state(&self) -> Result<State> {
        let mut state = self.inner.state()?;
        if matches!(self.lapse, Lapse::ForgetsTensors) {
            for tensor in state.tensors.values_mut() {
                *tensor = tensor.zeros_like()?;
            }
        }
        Ok(state)
    }

    fn restore(&mut self, state: State) -> Result<()> {
        match self.lapse {
            Lapse::LosesState => Ok(()),
            _ => self.inner.restore(state),
        }
    }
}

/// The panic of `check`, which must come from `law` and say `what`.
fn caught(family: &'static dyn AnyFamily, keys: Value, law: Law, laws: &[Law], what: &str) {
    let run = || check(family, &[("the mutant", keys.clone())], laws);
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else {
        panic!("{keys} went unnoticed by {law:?}");
    };
    let message = panic.downcast::<String>().expect("a formatted message");
    let expected = format!(
        "family {}, configuration `the mutant`, {law:?}: ",
        family.name()
    );
    assert!(
        message.starts_with(&expected) && message.contains(what),
        "{keys}: {message}"
    );
}

#[test]
fn without_a_fault_every_law_holds() {
    check(&Faulty, &[("plain", json!({}))], ALL);
    check(&Lapsing, &[("plain", json!({}))], ALL);
}

#[test]
fn faults_are_caught() {
    use Fault::*;
    let rows = [
        (StartsOffBase, Law::StartsAsBase, "differs by"),
        (StartsAtBase, Law::NotAtBase, "differs by 0e0 only"),
        (
            StartsTheSame,
            Law::OtherSeedDiffers,
            "another seed starts all",
        ),
        (None, Law::StartIsNotRandom, "numbers differ"),
        (DetachedB, Law::Gradients, "lora_B.weight` has no gradient"),
        (TurnedGradient, Law::Gradients, "differences say"),
        (NaNGradient, Law::Gradients, "not finite"),
        (None, Law::GradientsHoldConstants, "agree with differences"),
        (
            DetachedB,
            Law::GradientsHoldConstants,
            "lora_B.weight` has no gradient",
        ),
        (DrawsNewNoise, Law::RecomputeEqualsKeep, "the gradient of"),
        (ForgetsCarry, Law::RecomputeEqualsKeep, "the gradient of"),
        (
            DropsInEvaluation,
            Law::MergeEqualsForward,
            "merged: differs by",
        ),
        (MixesTokens, Law::Incremental, "then one by one: differs by"),
        (
            LeaksOverSegments,
            Law::Packed,
            "logits, packed against padded: differs by",
        ),
        (
            PositionsRunOn,
            Law::Packed,
            "logits, packed against padded: differs by",
        ),
        (CountsPadding, Law::Packed, "the record `mean`, packed"),
        (
            MergeForgetsScale,
            Law::MergeEqualsForward,
            "merged: differs by",
        ),
        (MergeForgetsScale, Law::MergeIsRefused, "merged: differs by"),
        (MergeGivesUp, Law::MergeEqualsForward, "18 not at all"),
        (MergeGivesUp, Law::MergeIsApproximate, "18 not at all"),
        (None, Law::MergeIsRefused, "none depends on the input"),
        (None, Law::MergeIsApproximate, "0 approximately"),
        (
            DeltaForgetsScale,
            Law::DeltaEqualsForwardMinusBase,
            "differs by",
        ),
        (
            DeltaForgetsScale,
            Law::Selections,
            "the weighted sum: differs by",
        ),
        (DeclaresNow, Law::SaveLoad, ".extra`"),
        (HidesItsSites, Law::SaveLoad, "`Family::sites` finds {}"),
        (KeepsToItself, Law::SaveLoad, "logits after loading"),
        (KeepsToItself, Law::SameSeedSameBits, "losses: "),
        (OneStorage, Law::EveryStorage, "dtype"),
        (IgnoresMask, Law::MasksRespectBudget, "against no mask"),
    ];
    for (fault, law, what) in rows {
        caught(&Faulty, json!({"fault": fault}), law, &[law], what);
    }
    let keys = json!({"lossy": 4.0});
    let law = Law::ConfigRoundTrip;
    caught(&Faulty, keys, law, &[law], "was read as");
    let keys = json!({"falt": "None"});
    caught(&Faulty, keys, law, ALL, "did you mean `fault`?");
}

#[test]
fn lapses_are_caught() {
    use Lapse::*;
    let budget = Law::MasksRespectBudget;
    let rows = [
        (MisstatesBudget, budget, "slots live after step"),
        (StatesNoBudget, budget, "expected the number of slots"),
        (RevivesHalf, budget, "was not revived with its gate"),
        (ConcealsRevivals, budget, "was not reported"),
        (RevivesTheOld, budget, "with its old values"),
        (NeverMasks, budget, "no mask changed in 12 steps"),
        (LosesState, Law::ControllerResumes, "the state is"),
        (ForgetsTensors, Law::ControllerResumes, "after resuming"),
        (WrongPenalty, Law::Gradients, "differences say"),
    ];
    for (lapse, law, what) in rows {
        caught(&Lapsing, json!({"lapse": lapse}), law, &[law], what);
    }
}

#[test]
fn a_variant_takes_the_place_of_the_law_that_it_excludes() {
    let laws = declaring(&[Law::MergeIsRefused, Law::NotAtBase]);
    assert_eq!(laws.len(), ALL.len());
    assert!(laws.contains(&Law::MergeIsRefused) && laws.contains(&Law::NotAtBase));
    assert!(!laws.contains(&Law::MergeEqualsForward) && !laws.contains(&Law::StartsAsBase));
    assert_eq!(declaring(&[]), ALL);
}
