//! What schedules, warm-ups and smoothed labels are in torch and transformers (`golden/schedules.py`), and noise on embedded
//! tokens.

use crate::support::{StubConfig, Tiny, attached, examples, run_file};
use candle_core::{DType, Device, Tensor, Var};
use lowrank_adapter::{Ask, Batch, Blur, Model, Pass, Selection, run};
use lowrank_data::{Example, StepRows};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_train::{Curve, Schedule, Trainable, Trainer, Warmup, batch, packed};
use serde_json::Value;
use std::path::Path;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/schedules.json")).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    let items = value.as_array().unwrap().iter();
    items.map(|item| item.as_f64().unwrap()).collect()
}

#[test]
fn rates_are_those_of_transformers() {
    let golden = golden();
    let base = golden["base"].as_f64().unwrap();
    let cases = golden["schedules"].as_array().unwrap();
    assert!(cases.len() > 15);
    for case in cases {
        let number = |key: &str| case[key].as_u64().unwrap();
        let schedule = Schedule {
            base,
            curve: match case["curve"].as_str().unwrap() {
                "cosine" => Curve::Cosine,
                _ => Curve::Linear,
            },
            warmup: number("warmup"),
            total: number("steps"),
            least: case["least"].as_f64().unwrap(),
        };
        for (step, rate) in (1..).zip(list(&case["rates"])) {
            let ours = schedule.rate(step);
            assert!(
                (ours - rate).abs() <= 1e-15,
                "{schedule:?} at {step}: {ours} {rate}"
            );
        }
    }
    for case in golden["warmups"].as_array().unwrap() {
        let warmup = Warmup::Ratio(case["ratio"].as_f64().unwrap());
        let steps = warmup.steps(case["steps"].as_u64().unwrap());
        assert_eq!(steps, case["warmup"].as_u64().unwrap(), "{case}");
    }
}

/// A head with the identity as its weight makes logits of what it is given.
#[test]
fn smoothed_losses_are_those_of_torch_and_transformers() {
    for case in golden()["smoothed"].as_array().unwrap() {
        let smoothing = case["epsilon"].as_f64().unwrap();
        let rows: Vec<Vec<f64>> = case["logits"]
            .as_array()
            .unwrap()
            .iter()
            .map(list)
            .collect();
        let classes = rows[0].len();
        let labels = list(&case["labels"]);
        // Shifted, and without what is not supervised.
        let supervised: Vec<usize> = (0..rows.len() - 1)
            .filter(|at| labels[at + 1] >= 0.0)
            .collect();
        let targets: Vec<u32> = supervised.iter().map(|at| labels[at + 1] as u32).collect();
        let picked: Vec<f64> = supervised.iter().flat_map(|at| rows[*at].clone()).collect();
        let picked = Tensor::from_vec(picked, (supervised.len(), classes), &Device::Cpu).unwrap();
        let identity = Tensor::eye(classes, DType::F64, &Device::Cpu).unwrap();
        let head = FrozenLinear::new(identity, None).unwrap();
        type Losses<'a> = Box<dyn Fn(&Tensor) -> Tensor + 'a>;
        let ways: [Losses<'_>; 2] = [
            Box::new(|x| ops::smoothed_cross_entropy(x, &targets, smoothing).unwrap()),
            Box::new(|x| head.smoothed_cross_entropy(x, &targets, smoothing).unwrap()),
        ];
        for losses in ways {
            let x = Var::from_tensor(&picked).unwrap();
            let mean = (ops::sum_all(&losses(&x)).unwrap() / targets.len() as f64).unwrap();
            let loss = mean.to_scalar::<f64>().unwrap();
            assert!((loss - case["loss"].as_f64().unwrap()).abs() < 1e-13);
            // transformers adds up the classes in f32.
            assert!((loss - case["label_smoother"].as_f64().unwrap()).abs() < 1e-6);
            let (_, grads) = ops::backward(&mean, &[], &[&x]).unwrap();
            let grads: Vec<Vec<f64>> = grads[0].as_ref().unwrap().to_vec2().unwrap();
            for (at, grad) in supervised.iter().zip(grads) {
                let expected = list(&case["gradient"][*at]);
                assert!(
                    grad.iter()
                        .zip(&expected)
                        .all(|(a, b)| (a - b).abs() < 1e-13)
                );
            }
        }
    }
}

const ALPHA: f64 = 3.5;

fn noisy(key: Key) -> Pass {
    let blur = Blur {
        embedding_noise: ALPHA,
        ..Blur::default()
    };
    Pass::training_pass(Selection::none(), key).blurred(blur)
}

/// What noise makes of each row's tokens.
fn noise(model: &Tiny, batch: &Batch, key: Key) -> Vec<Vec<f64>> {
    let embed = |pass: &mut Pass| {
        // A pass learns its tokens from a run.
        run(model, batch, &Ask::Losses, None, pass).unwrap();
        model.embed(batch, pass).unwrap()
    };
    let plain = embed(&mut Pass::evaluation(Selection::none()));
    let noised = embed(&mut noisy(key));
    let (_, _, width) = plain.dims3().unwrap();
    let noise = (noised - plain).unwrap().flatten_all().unwrap();
    let noise: Vec<f64> = noise.to_vec1().unwrap();
    let tokens = batch.tokens();
    let mut rows: Vec<Vec<f64>> = Vec::new();
    let mut last = (usize::MAX, 0);
    for (at, segment) in tokens.segments.iter().enumerate() {
        let numbers = &noise[at * width..][..width];
        if *segment == 0 {
            assert!(
                numbers.iter().all(|number| *number == 0.0),
                "noise on padding"
            );
            continue;
        }
        if last != (at / tokens.length, *segment) {
            rows.push(Vec::new());
            last = (at / tokens.length, *segment);
        }
        rows.last_mut().unwrap().extend(numbers);
    }
    rows
}

#[test]
fn noise_is_of_each_row_however_rows_are_laid_out() {
    let model = Tiny::new(DType::F64);
    let rows = examples(6);
    let key = Key::new(5, Purpose::Dropout).step(3).micro(2);
    let padded = noise(&model, &batch(&rows).unwrap(), key);
    assert_eq!(padded.len(), 6);
    let (mut most, mut count, mut squares) = (0f64, 0, 0.0);
    for (row, noise) in rows.iter().zip(&padded) {
        let width = noise.len() / row.ids.len();
        let size = ALPHA / ((row.ids.len() * width) as f64).sqrt();
        for number in noise {
            let share = number / size;
            assert!(share.abs() <= 1.0, "{share}");
            most = most.max(share.abs());
            squares += share * share;
            count += 1;
        }
    }
    // Uniform: up to the bound, with a variance of a third.
    let variance = squares / f64::from(count);
    assert!(
        most > 0.97 && (variance - 1.0 / 3.0).abs() < 0.06,
        "{most} {variance}"
    );

    // Padded further by a long row behind them; packed in one sequence, and in two.
    let mut more = rows.clone();
    let ids = vec![1; 20];
    more.push(Example {
        labels: vec![1; 20],
        ids,
        ..Example::default()
    });
    let further = noise(&model, &batch(&more).unwrap(), key);
    let one = noise(&model, &packed([rows.iter()]).unwrap(), key);
    let two = noise(
        &model,
        &packed([rows[..2].iter(), rows[2..].iter()]).unwrap(),
        key,
    );
    let close = |found: &[Vec<f64>]| {
        let pairs = found.iter().flatten().zip(padded.iter().flatten());
        pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-12)
    };
    assert!(close(&further[..6]) && close(&one) && close(&two));
    assert_eq!((further.len(), one.len(), two.len()), (7, 6, 6));
    // Another place of the run, another noise.
    for other in [
        key.step(4),
        key.micro(3),
        Key::new(6, Purpose::Dropout).step(3).micro(2),
    ] {
        assert!(!close(&noise(&model, &batch(&rows).unwrap(), other)));
    }
}

#[test]
fn evaluation_is_neither_smoothed_nor_noisy() {
    let model = Tiny::new(DType::F64);
    let batch = batch(&examples(5)).unwrap();
    let blur = Blur {
        label_smoothing: 0.3,
        embedding_noise: ALPHA,
    };
    let losses = |mut pass: Pass| -> Vec<f64> {
        let losses = run(&model, &batch, &Ask::Losses, None, &mut pass).unwrap();
        losses.to_vec1().unwrap()
    };
    let plain = losses(Pass::evaluation(Selection::none()));
    assert_eq!(
        plain,
        losses(Pass::evaluation(Selection::none()).blurred(blur))
    );
    let key = Key::new(5, Purpose::Dropout);
    assert_ne!(
        plain,
        losses(Pass::training_pass(Selection::none(), key).blurred(blur))
    );
    assert_eq!(plain, losses(Pass::training_pass(Selection::none(), key)));
}

/// The gradient of the smoothed loss under noise, with everything else on.
#[test]
fn gradients_under_both_match_differences() {
    let config = StubConfig {
        dropout: 0.25,
        ..StubConfig::default()
    };
    let (model, mut attached) = attached(DType::F64, &config);
    let keys = "batch_size = 4\naccumulate = 2\nlabel_smoothing = 0.2\nneftune_noise_alpha = 4";
    let (run, examples) = (run_file(Path::new("unused"), keys), examples(8));
    let params = attached.trained();
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train).unwrap();
    let rows = StepRows {
        step: 3,
        micro_batches: [&[0, 1, 2, 3][..], &[4, 5, 6]]
            .map(|rows| rows.iter().map(|row| vec![*row]).collect())
            .into(),
    };
    let summed = trainer.gradients(&rows).unwrap();
    for param in &params {
        let start = param.snapshot().unwrap();
        let mut numbers: Vec<f64> = start.flatten_all().unwrap().to_vec1().unwrap();
        let at = numbers.len() / 3;
        let middle = numbers[at];
        let mut total = |value: f64| {
            numbers[at] = value;
            let tensor = Tensor::from_slice(&numbers, start.shape(), &Device::Cpu).unwrap();
            param.set(&tensor).unwrap();
            trainer.gradients(&rows).unwrap().loss
        };
        let slope = (total(middle + 1e-5) - total(middle - 1e-5)) / 2e-5;
        param.set(&start).unwrap();
        let grad = summed.grads.get(param).unwrap().flatten_all().unwrap();
        let grad: Vec<f64> = grad.to_vec1().unwrap();
        assert!(
            (grad[at] - slope).abs() < 1e-8,
            "{param:?}: {} {slope}",
            grad[at]
        );
    }
}
