//! The rounds in which ranks move.

use crate::{AloraConfig, Scoring};
use lowrank_adapter::{Controller, Error, Outcome, Probe, RankGate, Result, Revival, State, Step};
use lowrank_ops::Grads;
use lowrank_schedule::{self as schedule, Ablation, Allocator, Components, Score, Sensitivity};
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;

/// AdaLoRA's smoothing, which the paper's ablation borrows with the score.
const BETA: f64 = 0.85;

/// Scores ranks, removes the worst, and gives others new ones.
#[derive(Debug)]
pub(crate) struct Reallocation {
    config: AloraConfig,
    /// Ranks a round.
    moved: usize,
    paths: Vec<String>,
    sites: Vec<Components>,
    score: Box<dyn Score>,
    /// Rounds that are done.
    done: u64,
    /// Ranks that live.
    ranks: usize,
}

impl Reallocation {
    /// `gates` and `paths` in site order.
    pub fn new(
        config: AloraConfig,
        moved: usize,
        paths: Vec<String>,
        gates: &[RankGate],
    ) -> Result<Self> {
        let sites: Vec<Components> = gates.iter().map(Components::of).collect();
        let score: Box<dyn Score> = match config.score {
            Scoring::Ablation => Box::new(Ablation::new(config.probe_examples)),
            Scoring::Sensitivity => Box::new(Sensitivity::new(&sites, BETA, BETA)?),
        };
        let mut reallocation = Self {
            config,
            moved,
            paths,
            sites,
            score,
            done: 0,
            ranks: 0,
        };
        reallocation.ranks = count(&reallocation.live()?.concat());
        Ok(reallocation)
    }

    fn live(&self) -> Result<Vec<Vec<bool>>> {
        let gates = self.sites.iter().filter_map(|site| site.gate.as_ref());
        gates.map(RankGate::live).collect()
    }

    /// Whether a round comes after this step.
    fn is_due(&self, step: Step) -> bool {
        let (first, between) = self.config.due(step.per_epoch);
        let since = between.checked_mul(self.done);
        let next = since.and_then(|steps| steps.checked_add(first));
        // Later, if that step updated nothing.
        self.done < self.config.rounds && next.is_some_and(|next| next <= step.index)
    }

    /// A run that ends before its last round is probably not what was meant.
    fn warn_of_rounds(&self, step: Step) {
        let (first, between) = self.config.due(step.per_epoch);
        let left = step.total.checked_sub(first);
        let fit = left.map_or(0, |left| left / between + 1);
        if step.index == 1 && fit < self.config.rounds {
            tracing::warn!(
                "alora: {fit} of `rounds = {}` fit into {} steps: the first comes after step {first}, the others {between} \
                 steps after each other",
                self.config.rounds,
                step.total
            );
        }
    }

    fn round(&mut self, step: Step, probe: &mut dyn Probe) -> Result<Outcome> {
        self.done += 1;
        let mut live = self.live()?;
        let scores = self.score.scores(&self.sites, probe)?;
        let moves = match Allocator::default().reallocate(&scores, &live, self.moved) {
            Ok(moves) => moves,
            Err(error @ schedule::Error::NotFinite { .. }) => {
                tracing::warn!("alora: round {} is left out: {error}", self.done);
                return Ok(self.outcome(Vec::new(), &live, json!([])));
            }
            Err(error) => return Err(error.into()),
        };
        self.warn_of_noise(&scores, &live);
        for &(site, slot) in &moves.removed {
            live[site][slot] = false;
        }
        let mut revivals = Vec::new();
        for ((site, live), added) in self.sites.iter().zip(&mut live).zip(moves.added) {
            let Some(gate) = &site.gate else { continue };
            gate.keep(live)?;
            let free = (0..live.len()).filter(|&slot| !live[slot]);
            let slots: Vec<usize> = free.take(added).collect();
            if !slots.is_empty() {
                revivals.extend(gate.revive(&slots, step.index)?);
                self.score.forget(site, &slots)?;
                slots.into_iter().for_each(|slot| live[slot] = true);
            }
        }
        self.ranks = count(&live.concat());
        let removed = moves.removed.into_iter();
        let removed: Vec<Value> = removed
            .map(|(site, slot)| json!({"site": self.paths[site], "score": scores[site][slot]}))
            .collect();
        Ok(self.outcome(revivals, &live, removed.into()))
    }

    fn outcome(&self, revivals: Vec<Revival>, live: &[Vec<bool>], removed: Value) -> Outcome {
        let ranks = self.paths.iter().zip(live);
        let ranks: Map<String, Value> = ranks
            .map(|(path, live)| (path.clone(), count(live).into()))
            .collect();
        let allocation = [
            ("round", self.done.into()),
            ("budget", self.ranks.into()),
            ("removed", removed),
            ("ranks", ranks.into()),
        ];
        let allocation = allocation.map(|(key, value)| (key.to_owned(), value));
        Outcome {
            revivals,
            allocation: Some(Map::from_iter(allocation)),
        }
    }

    /// Scores that lie nearer to each other than two evaluations of the same loss are ordered by rounding.
    fn warn_of_noise(&self, scores: &[Vec<f64>], live: &[Vec<bool>]) {
        let Some(noise) = self.score.noise() else {
            return;
        };
        let pairs = scores.iter().flatten().zip(live.iter().flatten());
        let mut all: Vec<f64> = pairs
            .filter(|(_, live)| **live)
            .map(|(score, _)| *score)
            .collect();
        all.sort_by(f64::total_cmp);
        let last = self.moved.checked_sub(1).and_then(|at| all.get(at));
        if let (Some(last), Some(next)) = (last, all.get(self.moved))
            && next - last < noise
        {
            tracing::warn!(
                "alora: in round {} the scores of the last rank that is removed and of the first that stays differ by \
                 {:e}, two evaluations of the same loss by {noise:e}",
                self.done,
                next - last
            );
        }
    }
}

fn count(live: &[bool]) -> usize {
    live.iter().filter(|live| **live).count()
}

impl Controller for Reallocation {
    fn held_out(&self) -> Option<NonZeroUsize> {
        let scores = self.config.rounds > 0 && self.moved > 0 && self.ranks > 0;
        self.score.held_out().filter(|_| scores)
    }

    fn after_update(
        &mut self,
        step: Step,
        grads: &Grads,
        probe: &mut dyn Probe,
    ) -> Result<Outcome> {
        self.warn_of_rounds(step);
        self.score.observe(&self.sites, grads)?;
        if self.is_due(step) {
            return self.round(step, probe);
        }
        Ok(Outcome::default())
    }

    fn budget(&self) -> Option<usize> {
        Some(self.ranks)
    }

    fn state(&self) -> Result<State> {
        let score = self.score.state()?;
        Ok(State {
            values: json!({"done": self.done, "ranks": self.ranks, "score": score.values}),
            tensors: score.tensors,
        })
    }

    fn restore(&mut self, state: State) -> Result<()> {
        let number = |key: &str| {
            let value = state.values.get(key).and_then(Value::as_u64);
            value.ok_or_else(|| {
                Error::Other(format!("the state of alora's rounds has no number `{key}`"))
            })
        };
        self.done = number("done")?;
        self.ranks = usize::try_from(number("ranks")?).unwrap_or(usize::MAX);
        Ok(self.score.restore(State {
            values: state.values.get("score").cloned().unwrap_or_default(),
            tensors: state.tensors,
        })?)
    }
}
