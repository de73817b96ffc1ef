//! Single steps: accumulation, memory, reachability, what is not finite.

use crate::support::{StubConfig, Tiny, all_bits, attached, bits, examples, run_file};
use candle_core::{DType, Device, Tensor};
use lowrank_data::{Example, StepRows, UNSUPERVISED};
use lowrank_train::{RunFile, Summed, Trainable, Trainer, Update, global_norm};
use std::path::Path;

fn keys(train: &str) -> RunFile {
    run_file(Path::new("unused"), train)
}

fn rows(step: u64, micro_batches: &[&[usize]]) -> StepRows {
    StepRows {
        step,
        micro_batches: micro_batches
            .iter()
            .map(|rows| rows.iter().map(|&row| vec![row]).collect())
            .collect(),
    }
}

fn summed(config: &StubConfig, train: &str, rows: &StepRows) -> (Summed, Vec<(String, Tensor)>) {
    let (model, mut attached) = attached(DType::F64, config);
    let (run, examples) = (keys(train), examples(8));
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let summed = trainer.gradients(rows).unwrap();
    let grads = summed
        .grads
        .iter()
        .map(|(param, grad)| (param.name().to_owned(), grad.clone()));
    let grads = grads.collect();
    (summed, grads)
}

#[test]
fn micro_batches_of_different_sizes_add_up_to_one_batch() {
    let config = StubConfig {
        auxiliary: 0.3,
        penalty: 0.05,
        ..StubConfig::default()
    };
    let whole: [&[usize]; 1] = [&[0, 1, 2, 3, 4, 5, 6, 7]];
    let (one, one_grads) = summed(&config, "batch_size = 8", &rows(1, &whole));
    let lengths = examples(8)
        .iter()
        .map(|example| example.supervised())
        .collect::<Vec<_>>();
    assert!(lengths[..4].iter().sum::<usize>() != lengths[4..].iter().sum::<usize>());
    for parts in [
        &[&[0usize, 1, 2, 3][..], &[4, 5, 6, 7]][..],
        &[&[0], &[1, 2, 3, 4, 5, 6], &[7]],
    ] {
        let (many, many_grads) = summed(&config, "batch_size = 4\naccumulate = 2", &rows(1, parts));
        assert!((one.loss - many.loss).abs() < 1e-12);
        let auxiliary = (one.auxiliary.unwrap(), many.auxiliary.unwrap());
        assert!(auxiliary.0 > 0.1 && (auxiliary.0 - auxiliary.1).abs() < 1e-12);
        assert_eq!((one.tokens, one.supervised), (many.tokens, many.supervised));
        assert_eq!(one_grads.len(), 8);
        for ((name, one), (_, many)) in one_grads.iter().zip(&many_grads) {
            let difference = (one - many).unwrap().abs().unwrap().flatten_all().unwrap();
            let difference = difference.max(0).unwrap().to_scalar::<f64>().unwrap();
            let size = one
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f64>()
                .unwrap();
            assert!(size > 1e-6 && difference < 1e-12, "{name}: {difference}");
        }
    }
}

#[test]
fn packed_rows_give_the_step_of_the_same_rows_padded() {
    let config = StubConfig {
        auxiliary: 0.3,
        penalty: 0.05,
        ..StubConfig::default()
    };
    let examples = examples(8);
    let padded = rows(1, &[&[0, 1, 2, 3, 4, 5, 6, 7]]);
    let (padded, padded_grads) = summed(&config, "", &padded);
    let all: usize = examples.iter().map(|example| example.ids.len()).sum();
    // All rows in one sequence; two a step; two micro-batches.
    for (max_length, train) in [
        (all, "batch_size = 1"),
        (all / 2 + 3, "batch_size = 2"),
        (all / 2 + 3, "batch_size = 1\naccumulate = 2"),
    ] {
        let (model, mut attached) = attached(DType::F64, &config);
        let mut run = keys(&format!("epochs = 1\n{train}"));
        run.data.packing = true;
        run.data.max_length = std::num::NonZeroUsize::new(max_length).unwrap();
        let mut trainable = Trainable::adapter(&model, &mut attached);
        let trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
        let steps: Vec<_> = trainer.plan().steps_after(0).collect();
        assert_eq!(steps.len(), 1, "{train}");
        let sequences = steps[0].micro_batches.iter().flatten().count();
        assert_eq!(sequences, if max_length == all { 1 } else { 2 });
        let packed = trainer.gradients(&steps[0]).unwrap();
        assert!((packed.loss - padded.loss).abs() < 1e-12, "{train}");
        let auxiliary = (packed.auxiliary.unwrap(), padded.auxiliary.unwrap());
        assert!((auxiliary.0 - auxiliary.1).abs() < 1e-12);
        assert_eq!(
            (packed.tokens, packed.supervised),
            (padded.tokens, padded.supervised)
        );
        assert_eq!(packed.grads.len(), padded_grads.len());
        for ((param, packed), (name, padded)) in packed.grads.iter().zip(&padded_grads) {
            assert_eq!(param.name(), name);
            let difference = (packed - padded).unwrap().abs().unwrap();
            let difference = difference.max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(difference < 1e-12, "{name}: {difference}");
        }
    }
}

#[test]
fn the_gradient_of_everything_matches_differences() {
    let config = StubConfig {
        auxiliary: 0.3,
        penalty: 0.05,
        dropout: 0.25,
        ..StubConfig::default()
    };
    let (model, mut attached) = attached(DType::F64, &config);
    let (run, examples) = (keys("batch_size = 4\naccumulate = 2"), examples(8));
    let params = attached.trained();
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let rows = rows(3, &[&[0, 1, 2, 3], &[4, 5, 6]]);
    let grads = trainer.gradients(&rows).unwrap().grads;
    for param in &params {
        let start = param.snapshot().unwrap();
        let mut numbers: Vec<f64> = start.flatten_all().unwrap().to_vec1().unwrap();
        let at = numbers.len() / 2;
        let middle = numbers[at];
        let mut total = |value: f64| {
            numbers[at] = value;
            param
                .set(&Tensor::from_slice(&numbers, start.shape(), &Device::Cpu).unwrap())
                .unwrap();
            let summed = trainer.gradients(&rows).unwrap();
            summed.loss + summed.auxiliary.unwrap()
        };
        let slope = (total(middle + 1e-5) - total(middle - 1e-5)) / 2e-5;
        param.set(&start).unwrap();
        let grad: Vec<f64> = grads
            .get(param)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert!(
            (grad[at] - slope).abs() < 1e-8,
            "{param:?}: {} and {slope}",
            grad[at]
        );
    }
}

fn bits_after(dtype: DType, train: &str) -> Vec<(String, Vec<u64>)> {
    let config = StubConfig {
        dropout: 0.3,
        auxiliary: 0.2,
        penalty: 0.01,
        revive_every: 2,
        ..StubConfig::default()
    };
    let (model, mut attached) = attached(dtype, &config);
    let params = attached.params.clone();
    let (run, examples) = (keys(train), examples(8));
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let mut trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let plan = trainer.plan().clone();
    for rows in plan.steps_after(0) {
        assert_eq!(trainer.step(&rows).unwrap().update, Update::Made);
    }
    all_bits(&params)
}

#[test]
fn recomputation_and_repetition_give_the_same_bits() {
    let train =
        "steps = 5\nbatch_size = 3\naccumulate = 2\nlearning_rate = 0.05\nweight_decay = 0.1\n";
    for dtype in [DType::F32, DType::F64] {
        let kept = bits_after(dtype, train);
        assert_eq!(kept, bits_after(dtype, train));
        assert_eq!(kept, bits_after(dtype, &format!("{train}recompute = true")));
        assert_ne!(kept, bits_after(dtype, &format!("{train}seed = 43")));
    }
}

#[test]
fn a_trained_tensor_without_gradient_stops_the_run_by_name() {
    let config = StubConfig {
        dead: true,
        ..StubConfig::default()
    };
    let (model, mut attached) = attached(DType::F32, &config);
    let before = all_bits(&attached.params);
    let params = attached.params.clone();
    let (run, examples) = (keys("steps = 2"), examples(8));
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let mut trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let error = trainer.step(&rows(1, &[&[0, 1]])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`layers.0.up.stub_dead.weight` is trained but receives no gradient: the loss does not depend on it"
    );
    assert!(!error.is_usage());
    assert_eq!(all_bits(&params), before);
}

#[test]
fn what_is_not_finite_stops_the_run_or_is_skipped() {
    const HINT: &str = "; try a lower `train.learning_rate`, or leave such steps out with `train.on_non_finite = \"skip\"`";
    let poisoned = StubConfig {
        poison_at: 2,
        ..StubConfig::default()
    };
    for (config, nan_param, message) in [
        (
            &poisoned,
            false,
            "step 2: the gradient of `layers.0.down.stub_B.weight`, as rewritten by its method, is not finite",
        ),
        (
            &StubConfig::default(),
            true,
            "step 2: the loss is NaN (`layers.0.up.stub_A.weight` holds such a value)",
        ),
    ] {
        for skip in [false, true] {
            let (model, mut attached) = attached(DType::F64, config);
            let params = attached.params.clone();
            let run = keys(if skip { "on_non_finite = \"skip\"" } else { "" });
            let examples = examples(8);
            let mut trainable = Trainable::adapter(&model, &mut attached);
            let mut trainer =
                Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
            trainer.step(&rows(1, &[&[0, 1]])).unwrap();
            let good = params[0].snapshot().unwrap();
            if nan_param {
                params[0].set(&(&good * f64::NAN).unwrap()).unwrap();
            }
            let before = all_bits(&params);
            match trainer.step(&rows(2, &[&[2, 3]])) {
                Ok(done) => {
                    assert!(skip);
                    assert_eq!(done.update, Update::NotFinite);
                    assert_eq!(done.loss.is_nan(), nan_param);
                    // A NaN is logged as null, and what a run does not have is not logged.
                    assert_eq!((done.grad_norm.is_nan(), done.auxiliary), (nan_param, None));
                }
                Err(error) => {
                    assert!(!skip);
                    assert_eq!(error.to_string(), format!("{message}{HINT}"));
                    continue;
                }
            }
            assert_eq!(all_bits(&params), before);
            params[0].set(&good).unwrap();
            assert_eq!(
                trainer.step(&rows(3, &[&[4, 5]])).unwrap().update,
                Update::Made
            );
        }
    }
}

#[test]
fn rows_without_supervision_change_nothing_and_never_divide_by_zero() {
    let mut rows_with = examples(6);
    for row in &mut rows_with[..3] {
        row.labels.fill(UNSUPERVISED);
    }
    let config = StubConfig {
        auxiliary: 0.1,
        penalty: 0.2,
        ..StubConfig::default()
    };
    let (model, mut attached) = attached(DType::F64, &config);
    let params = attached.params.clone();
    let before = all_bits(&params);
    let run = keys("weight_decay = 0.5\nlearning_rate = 0.1");
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let mut trainer = Trainer::new(&mut trainable, &rows_with, &[], &run.data, &run.train).unwrap();
    let done = trainer.step(&rows(1, &[&[0, 1], &[2]])).unwrap();
    assert_eq!(
        (done.loss, done.grad_norm, done.update),
        (0.0, 0.0, Update::NothingSupervised)
    );
    let tokens: usize = rows_with[..3]
        .iter()
        .map(|row: &Example| row.ids.len())
        .sum();
    assert_eq!(done.tokens, tokens as u64);
    assert_eq!(all_bits(&params), before);
    // A micro-batch without supervision beside one with it adds its tokens and its auxiliary loss.
    let done = trainer.step(&rows(2, &[&[0, 1], &[3, 4]])).unwrap();
    assert_eq!(done.update, Update::Made);
    assert!(done.loss > 0.5 && done.auxiliary.unwrap() > 0.0);
    assert_ne!(all_bits(&params), before);
}

#[test]
fn gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported() {
    let grads = summed(&StubConfig::default(), "", &rows(1, &[&[0, 1, 2]]))
        .0
        .grads;
    let norm = global_norm(&grads).unwrap();
    let (model, mut attached) = attached(DType::F64, &StubConfig::default());
    let params = attached.trained();
    let start = params[0].snapshot().unwrap();
    // With a large eps the update is nearly the gradient itself, so that its size shows.
    let run = keys("max_grad_norm = 0.01\nlearning_rate = 1.0\neps = 1e6");
    let examples = examples(8);
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let mut trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let done = trainer.step(&rows(1, &[&[0, 1, 2]])).unwrap();
    // The stub's controller has seen something by then, and rewrites one gradient.
    assert!(done.grad_norm > norm && done.grad_norm < norm * 1.2);
    let moved = ((start - params[0].value()).unwrap() * 1e6).unwrap();
    let expected = (grads.get(&params[0]).unwrap() * (0.01 / (done.grad_norm + 1e-6))).unwrap();
    for (moved, expected) in bits(&moved).into_iter().zip(bits(&expected)) {
        let (moved, expected) = (f64::from_bits(moved), f64::from_bits(expected));
        assert!((moved - expected).abs() < 1e-8, "{moved} {expected}");
    }
}

#[test]
fn a_probe_masks_held_out_losses() {
    let config = StubConfig {
        probe_at: 1,
        ..StubConfig::default()
    };
    let train = "batch_size = 3";
    for held_out in [0, 5] {
        let (model, mut attached) = attached(DType::F64, &config);
        let (run, examples) = (keys(train), examples(8));
        let mut trainable = Trainable::adapter(&model, &mut attached);
        let mut trainer = Trainer::new(
            &mut trainable,
            &examples,
            &examples[..held_out],
            &run.data,
            &run.train,
        )
        .unwrap();
        let done = trainer.step(&rows(1, &[&[0, 1, 2]]));
        if held_out == 0 {
            assert_eq!(
                done.unwrap_err().to_string(),
                "the method scores ranks on held-out rows, and there are none: name some in `data.eval`, or hold some of `data.train` out with `data.eval_fraction`"
            );
            continue;
        }
        done.unwrap();
        let state = trainer
            .trainable()
            .controller
            .as_ref()
            .unwrap()
            .state()
            .unwrap();
        let losses: Vec<f64> = state.tensors["mean"].to_vec1().unwrap();
        assert!(
            losses.iter().all(|loss| (1.0..5.0).contains(loss)),
            "{losses:?}"
        );
        assert!((losses[0] - losses[1]).abs() > 1e-6);
    }
}

#[test]
fn a_loss_that_overflows_names_the_layer() {
    let (model, mut attached) = attached(DType::F32, &StubConfig::default());
    let params = attached.params.clone();
    let outer = params
        .iter()
        .find(|param| param.name() == "layers.1.up.stub_B.weight")
        .unwrap();
    outer
        .set(&(outer.snapshot().unwrap() * 1e38).unwrap())
        .unwrap();
    let (run, examples) = (keys(""), examples(8));
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let mut trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let message = trainer
        .step(&rows(1, &[&[0, 1], &[2]]))
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("step 1: the loss is NaN (from `layers.1.down` on); try"),
        "{message}"
    );
}

#[test]
fn a_controller_sees_nothing_of_a_step_that_is_left_out() {
    let (model, mut attached) = attached(DType::F32, &StubConfig::default());
    let params = attached.params.clone();
    let (run, examples) = (keys("on_non_finite = \"skip\""), examples(8));
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let mut trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let state = |trainer: &Trainer<'_, '_>| {
        let controller = trainer.trainable().controller.as_ref();
        controller
            .unwrap()
            .state()
            .unwrap()
            .values
            .as_f64()
            .unwrap()
    };
    trainer.step(&rows(1, &[&[0, 1]])).unwrap();
    let before = state(&trainer);
    assert!(before > 0.0);
    // So large that some rows overflow and some do not.
    let start = params[0].snapshot().unwrap();
    let (good, bad) = (0..400)
        .find_map(|power| {
            let factor = 1e10 * 1.2f64.powi(power);
            params[0].set(&(&start * factor).unwrap()).unwrap();
            let finite = |row: &usize| {
                let summed = trainer.gradients(&rows(2, &[&[*row]])).unwrap();
                summed.origin.is_none()
            };
            let (good, bad): (Vec<usize>, Vec<usize>) = (0..8).partition(finite);
            Some((*good.first()?, *bad.first()?))
        })
        .unwrap();
    let done = trainer.step(&rows(2, &[&[good], &[bad]])).unwrap();
    assert_eq!(done.update, Update::NotFinite);
    assert!(done.loss.is_nan() && done.grad_norm.is_nan());
    assert_eq!(state(&trainer), before);
}

#[test]
fn every_weight_of_a_model_can_be_trained() {
    let mut model = Tiny::new(DType::F32);
    let params = lowrank_adapter::train_all(&mut model, "full").unwrap();
    let before = all_bits(&params);
    let (run, examples) = (
        keys("steps = 30\nlearning_rate = 0.02\nmax_grad_norm = 0"),
        examples(8),
    );
    let mut trainable = Trainable::whole(&model, "full", params.clone());
    let mut trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let plan = trainer.plan().clone();
    let losses: Vec<f64> = plan
        .steps_after(0)
        .map(|rows| trainer.step(&rows).unwrap().loss)
        .collect();
    assert!(losses[29] < 0.6 * losses[0], "{losses:?}");
    assert_eq!(params.len(), 6);
    for ((name, before), (_, after)) in before.iter().zip(&all_bits(&params)) {
        assert!(before != after, "{name}");
    }
}
