//! Losses, choices and logits against the plain way to compute them.

use crate::support::{StubConfig, Tiny, VOCAB, attached, examples, questions};
use candle_core::DType;
use lowrank_adapter::{Selection, detach};
use lowrank_data::{ChoiceExample, Example, UNSUPERVISED};
use lowrank_train::{Prediction, choices, logits, loss};
use std::borrow::Cow;
use std::num::NonZeroUsize;

fn size(batch_size: usize) -> NonZeroUsize {
    NonZeroUsize::new(batch_size).unwrap()
}

/// log-probabilities of every next token, the plain way.
fn log_probabilities(model: &Tiny, selection: &Selection, ids: &[u32]) -> Vec<Vec<f64>> {
    let logits = logits(model, selection, ids).unwrap();
    assert!(!logits.track_op());
    assert_eq!(logits.dims(), [ids.len(), VOCAB]);
    let mut rows: Vec<Vec<f64>> = logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
    for row in &mut rows {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter_mut().for_each(|x| *x -= sum.ln());
    }
    rows
}

fn sequence_loss(model: &Tiny, selection: &Selection, example: &Example) -> (f64, u64) {
    let rows = log_probabilities(model, selection, &example.ids);
    let (mut sum, mut count) = (0.0, 0);
    for (i, &label) in example.labels.iter().enumerate().skip(1) {
        if label != UNSUPERVISED {
            sum -= rows[i - 1][label as usize];
            count += 1;
        }
    }
    (sum, count)
}

#[test]
fn the_loss_is_a_mean_over_tokens_whatever_the_batches() {
    let (model, attached) = attached(
        DType::F64,
        &StubConfig {
            dropout: 0.5,
            ..StubConfig::default()
        },
    );
    let examples = examples(7);
    for selection in [Selection::one(attached.name), Selection::none()] {
        let (mut sum, mut count) = (0.0, 0);
        for example in &examples {
            let (loss, tokens) = sequence_loss(&model, &selection, example);
            sum += loss;
            count += tokens;
        }
        for batch_size in [1, 3, 50] {
            let rows = size(batch_size);
            let evaluation = loss(&model, &selection, &examples, rows, &mut || Ok(())).unwrap();
            assert_eq!(evaluation.examples, 7);
            assert_eq!(
                evaluation.tokens,
                examples.iter().map(|row| row.ids.len() as u64).sum::<u64>()
            );
            assert_eq!(evaluation.supervised_tokens, count);
            assert!((evaluation.loss.unwrap() - sum / count as f64).abs() < 1e-12);
            assert_eq!(
                (evaluation.accuracy, evaluation.accuracy_norm),
                (None, None)
            );
        }
    }
}

#[test]
fn nothing_supervised_has_no_loss() {
    let (model, _) = attached(DType::F32, &StubConfig::default());
    let mut examples = examples(3);
    examples
        .iter_mut()
        .for_each(|example| example.labels.fill(UNSUPERVISED));
    let none = Selection::none();
    let evaluation = loss(&model, &none, &examples, size(2), &mut || Ok(())).unwrap();
    assert_eq!((evaluation.loss, evaluation.supervised_tokens), (None, 0));
}

type Question = (Example, ChoiceExample);

fn ask(
    model: &Tiny,
    selection: &Selection,
    rows: &[Question],
    batch_size: usize,
) -> (lowrank_train::Evaluation, Vec<Prediction>) {
    let mut predictions = Vec::new();
    let pairs = rows.iter();
    let pairs = pairs.map(|(example, question)| Ok((Cow::Borrowed(example), question)));
    let evaluation = choices(
        model,
        selection,
        pairs,
        size(batch_size),
        &mut |prediction| {
            predictions.push(prediction);
            Ok(())
        },
        &mut || Ok(()),
    );
    (evaluation.unwrap(), predictions)
}

#[test]
fn choices_are_scored_as_whole_sequences_are() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        let (model, attached) = attached(dtype, &StubConfig::default());
        let selection = Selection::one(attached.name);
        let rows = questions(9);
        let (mut right, mut right_norm, mut sum, mut count) = (0, 0, 0.0, 0);
        let mut expected = Vec::new();
        for (example, question) in &rows {
            let scores: Vec<f64> = question
                .choices
                .iter()
                .map(|choice| {
                    let ids = [&question.prompt[..], choice].concat();
                    let rows = log_probabilities(&model, &selection, &ids);
                    (question.prompt.len()..ids.len())
                        .map(|i| rows[i - 1][ids[i] as usize])
                        .sum()
                })
                .collect();
            let highest = |scores: &[f64]| {
                (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
            };
            let normed: Vec<f64> = scores
                .iter()
                .zip(&question.choice_bytes)
                .map(|(score, &bytes)| score / bytes as f64)
                .collect();
            right += usize::from(Some(highest(&scores)) == question.gold);
            right_norm += usize::from(Some(highest(&normed)) == question.gold);
            let (loss, tokens) = sequence_loss(&model, &selection, example);
            sum += loss;
            count += tokens;
            expected.push((highest(&scores), scores));
        }
        assert!(
            right != right_norm && right > 0 && right_norm > 0,
            "{right} {right_norm}"
        );
        for batch_size in [1, 2, 8] {
            let (evaluation, predictions) = ask(&model, &selection, &rows, batch_size);
            assert_eq!(evaluation.accuracy, Some(right as f64 / 9.0));
            assert_eq!(evaluation.accuracy_norm, Some(right_norm as f64 / 9.0));
            assert_eq!(evaluation.supervised_tokens, count);
            assert!((evaluation.loss.unwrap() - sum / count as f64).abs() < tolerance);
            for (index, (prediction, (best, scores))) in
                predictions.iter().zip(&expected).enumerate()
            {
                assert_eq!(
                    (prediction.index, prediction.prediction),
                    (index, Some(*best))
                );
                assert_eq!(prediction.answer, rows[index].1.gold);
                assert_eq!(prediction.correct, Some(prediction.answer == Some(*best)));
                for (got, expected) in prediction.scores.iter().zip(scores) {
                    assert!(
                        (got - expected).abs() < tolerance * 10.0,
                        "{got} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn ties_take_the_lowest_index_and_a_completion_may_differ_from_the_choices() {
    let (mut model, attached) = attached(DType::F64, &StubConfig::default());
    let mut rows = questions(2);
    for (_, question) in &mut rows {
        let same = question.choices[1].clone();
        question.choices.fill(same);
        question.gold = None;
    }
    // Nothing says which choice the completion is: it runs as a row of its own.
    let selection = Selection::one(attached.name);
    let (evaluation, predictions) = ask(&model, &selection, &rows, 2);
    let (mut sum, mut count) = (0.0, 0);
    for (prediction, (example, _)) in predictions.iter().zip(&rows) {
        assert_eq!(
            (prediction.prediction, prediction.answer, prediction.correct),
            (Some(0), None, None)
        );
        assert_eq!(prediction.scores.len(), 3);
        let (loss, tokens) = sequence_loss(&model, &selection, example);
        sum += loss;
        count += tokens;
    }
    assert_eq!(
        (evaluation.accuracy, evaluation.supervised_tokens),
        (None, count)
    );
    assert!((evaluation.loss.unwrap() - sum / count as f64).abs() < 1e-12);

    // Without the adapter the model is the base model bit for bit.
    let adapted = ask(&model, &Selection::none(), &rows, 2);
    detach(&mut model, "default");
    assert_eq!(
        adapted,
        ask(&Tiny::new(DType::F64), &Selection::none(), &rows, 2)
    );
}

#[test]
fn a_choice_that_was_cut_to_nothing_has_no_score_and_does_not_win() {
    let (model, _) = attached(DType::F64, &StubConfig::default());
    let (mut example, mut question) = questions(1).remove(0);
    let length = question.prompt.len();
    example.ids.truncate(length);
    example.labels.truncate(length);
    let (whole, gold) = (question.choices.clone(), 1);
    question.gold = Some(gold);
    question.choices.iter_mut().for_each(Vec::clear);
    let none = f64::NEG_INFINITY;
    let rows = [(example.clone(), question.clone())];
    let (evaluation, predictions) = ask(&model, &Selection::none(), &rows, 3);
    assert_eq!((evaluation.loss, evaluation.supervised_tokens), (None, 0));
    assert_eq!(
        (evaluation.accuracy, evaluation.accuracy_norm),
        (Some(0.0), Some(0.0))
    );
    assert_eq!(
        (
            predictions[0].prediction,
            predictions[0].correct,
            &predictions[0].scores[..]
        ),
        (None, Some(false), &[none, none, none][..])
    );

    question.choices[2].clone_from(&whole[2]);
    let (evaluation, predictions) = ask(&model, &Selection::none(), &[(example, question)], 3);
    assert_eq!(evaluation.accuracy, Some(0.0));
    assert_eq!(
        (predictions[0].prediction, predictions[0].correct),
        (Some(2), Some(false))
    );
    assert_eq!(predictions[0].scores[..2], [none, none]);
    assert!(predictions[0].scores[2] < 0.0 && predictions[0].scores[2].is_finite());
}
