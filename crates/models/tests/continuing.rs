//! Texts continued over the cache are those continued without one, and end where they must.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{logits, model, object, plain, rich, text, with};
use lowrank_adapter::{KvCache, Model, Selection};
use lowrank_models::{
    Continuation, Error, Finish, Limits, ModelInfo, Sampling, Temperature, continue_all,
};
use serde_json::json;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

fn limits(max_new_tokens: usize, positions: usize, end_tokens: &[u32]) -> Limits {
    Limits {
        max_new_tokens: NonZeroUsize::new(max_new_tokens).unwrap(),
        positions,
        end_tokens: end_tokens.to_vec(),
    }
}

fn continued(
    model: &dyn Model,
    prompt: &[u32],
    sampling: Sampling,
    limits: Limits,
) -> (Vec<u32>, Finish) {
    let mut tokens = Continuation::new(model, Selection::none(), prompt, sampling, limits).unwrap();
    assert_eq!(tokens.finish(), None);
    let written: Vec<u32> = tokens.by_ref().map(|token| token.unwrap()).collect();
    assert!(tokens.next().is_none());
    (written, tokens.finish().unwrap())
}

/// Every token from all logits of the whole text so far.
fn without_cache(model: &dyn Model, prompt: &[u32], sampling: Sampling, count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for index in 0..count {
        let all = logits(model, &ids);
        ids.push(sampling.choose(all.last().unwrap(), index as u64).unwrap());
    }
    ids.split_off(prompt.len())
}

fn warm(seed: u64) -> Sampling {
    Sampling {
        temperature: Temperature::new(0.8).unwrap(),
        seed,
        ..Sampling::GREEDY
    }
}

#[test]
fn the_cache_changes_no_token() {
    for (json, vocab, positions) in [(rich(), 29, 96), (plain(), 23, 40)] {
        let (model, _) = model(&json, 41);
        for (length, sampling) in [
            (1, Sampling::GREEDY),
            (7, Sampling::GREEDY),
            (5, warm(3)),
            (6, warm(4)),
        ] {
            let prompt = text(length, vocab, length as u64);
            let expected = without_cache(&model, &prompt, sampling, 25);
            let found = continued(&model, &prompt, sampling, limits(25, positions, &[]));
            assert_eq!(found, (expected, Finish::Length));
        }
    }
}

#[test]
fn a_seed_is_a_text() {
    let (model, _) = model(&rich(), 42);
    let write = |seed| continued(&model, &[3, 5, 8], warm(seed), limits(30, 96, &[])).0;
    assert_eq!(write(1), write(1));
    assert_ne!(write(1), write(2));
}

#[test]
fn every_end_token_ends_the_text_and_is_no_part_of_it() {
    let (model, _) = model(&rich(), 43);
    let whole = continued(&model, &[4, 9, 2], warm(7), limits(40, 96, &[])).0;
    for at in [0, 3, 17] {
        let first = whole.iter().position(|id| *id == whole[at]).unwrap();
        let found = continued(
            &model,
            &[4, 9, 2],
            warm(7),
            limits(40, 96, &[999, whole[at]]),
        );
        assert_eq!(found, (whole[..first].to_vec(), Finish::Stop));
    }
}

#[test]
fn what_is_asked_for_and_what_the_model_reads_are_limits() {
    let (model, _) = model(&plain(), 44);
    let prompt = text(36, 23, 1);
    let whole = without_cache(&model, &prompt, Sampling::GREEDY, 4);
    for (asked, found) in [(1, 1), (3, 3), (4, 4), (5, 4), (100, 4)] {
        let written = continued(&model, &prompt, Sampling::GREEDY, limits(asked, 40, &[]));
        assert_eq!(
            written,
            (whole[..found].to_vec(), Finish::Length),
            "{asked}"
        );
    }
    // The last place may hold the end token.
    let written = continued(
        &model,
        &prompt,
        Sampling::GREEDY,
        limits(9, 40, &[whole[3]]),
    );
    let first = whole.iter().position(|id| *id == whole[3]).unwrap();
    assert_eq!(written, (whole[..first].to_vec(), Finish::Stop));

    let refused = |prompt: &[u32]| {
        let new = Continuation::new(
            &model,
            Selection::none(),
            prompt,
            Sampling::GREEDY,
            limits(9, 40, &[]),
        );
        let error = new.err().unwrap();
        assert!(error.is_usage());
        error.to_string()
    };
    assert_eq!(refused(&[]), "the prompt has no tokens");
    assert_eq!(
        refused(&text(40, 23, 1)),
        "the prompt has 40 tokens and the model reads at most 40 (`max_position_embeddings`), which leaves no room to \
         continue it; shorten it"
    );
}

#[test]
fn after_an_error_there_is_nothing_more() {
    let (model, _) = model(&plain(), 45);
    let mut tokens = Continuation::new(
        &model,
        Selection::none(),
        &[3, 23],
        Sampling::GREEDY,
        limits(9, 40, &[]),
    )
    .unwrap();
    let error = tokens.next().unwrap().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("token 23 is not in the model's vocabulary of 23 tokens"),
        "{error}"
    );
    assert!(!error.is_usage());
    assert!(tokens.next().is_none());
    assert_eq!(tokens.finish(), None);
}

#[test]
fn end_tokens_come_from_both_files() {
    let info = |fields| {
        let config = with(plain(), fields);
        ModelInfo::from_json(object(&config), "config.json").unwrap()
    };
    let check = |config, generation: serde_json::Value, expected: &[u32]| {
        let tokens = info(config).end_tokens(object(&generation), "generation_config.json");
        assert_eq!(tokens.unwrap(), expected);
    };
    check(
        json!({"eos_token_id": [2, 7]}),
        json!({"eos_token_id": [7, 9, 11], "top_k": 3}),
        &[2, 7, 9, 11],
    );
    check(
        json!({"eos_token_id": 2}),
        json!({"eos_token_id": 5}),
        &[2, 5],
    );
    check(
        json!({"eos_token_id": null}),
        json!({"eos_token_id": null}),
        &[],
    );
    check(json!({}), json!({}), &[2]);
    let wrong = json!({"eos_token_id": "</s>"});
    let error = info(json!({}))
        .end_tokens(object(&wrong), "generation_config.json")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "generation_config.json: `eos_token_id` is \"</s>\", expected a token id or a list of token ids"
    );
}

#[test]
fn texts_side_by_side_are_those_written_alone() {
    for (json, vocab, positions) in [(rich(), 29, 96), (plain(), 23, 40)] {
        let (model, _) = model(&json, 46);
        let prompts: Vec<Vec<u32>> = [5, 1, 17, 8, 17, 30]
            .iter()
            .zip(1..)
            .map(|(length, seed)| text(*length, vocab, seed))
            .collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        for sampling in [Sampling::GREEDY, warm(5)] {
            for ends in [&[][..], &[3, 4]] {
                let limits = limits(25, positions, ends);
                let selection = Selection::none();
                let alone: Vec<_> = prompts
                    .iter()
                    .map(|prompt| continued(&model, prompt, sampling, limits.clone()))
                    .collect();
                for side_by_side in [1, 2, 4, 6, 50] {
                    let mut told = vec![Vec::new(); prompts.len()];
                    let mut each = |index: usize, token| {
                        told[index].push(token);
                        ControlFlow::Continue(())
                    };
                    let found = continue_all(
                        &model,
                        &selection,
                        &prompts,
                        sampling,
                        &limits,
                        NonZeroUsize::new(side_by_side).unwrap(),
                        &mut each,
                    );
                    let found = found.unwrap();
                    assert_eq!(
                        told,
                        found
                            .iter()
                            .map(|text| text.ids.clone())
                            .collect::<Vec<_>>()
                    );
                    let found: Vec<_> = found
                        .into_iter()
                        .map(|text| (text.ids, text.finish))
                        .collect();
                    assert_eq!(found, alone, "{side_by_side} at a time");
                }
            }
        }
    }
}

#[test]
fn texts_side_by_side_end_where_they_are_told_to() {
    let (model, _) = model(&rich(), 48);
    let prompts: Vec<Vec<u32>> = (1..=7)
        .map(|seed| text(3 + seed as usize, 29, seed))
        .collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let limits = limits(9, 96, &[]);
    let mut counts = vec![0; prompts.len()];
    // Text i has i + 1 tokens, but none more than nine.
    let mut each = |index: usize, _| {
        counts[index] += 1;
        match counts[index] > index {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let found = continue_all(
        &model,
        &Selection::none(),
        &prompts,
        Sampling::GREEDY,
        &limits,
        NonZeroUsize::new(3).unwrap(),
        &mut each,
    );
    for (index, text) in found.unwrap().into_iter().enumerate() {
        let (ids, _) = continued(&model, prompts[index], Sampling::GREEDY, limits.clone());
        assert_eq!((&text.ids[..], text.finish), (&ids[..=index], Finish::Stop));
    }
}

#[test]
fn a_continuation_goes_on_from_a_cache() {
    let (model, _) = model(&rich(), 49);
    let prompt = text(12, 29, 3);
    let whole = continued(&model, &prompt, Sampling::GREEDY, limits(6, 96, &[]));
    let start = |cache: KvCache, prompt: &[u32]| {
        let (selection, limits) = (Selection::none(), limits(6, 96, &[]));
        Continuation::after(&model, selection, cache, prompt, Sampling::GREEDY, limits).unwrap()
    };
    for held in [0, 1, 7, 11, 12] {
        // The cache also holds what was written, which is another text.
        let mut first = start(KvCache::new(), &prompt[..held.max(1)]);
        let written: Vec<u32> = first.by_ref().map(|id| id.unwrap()).collect();
        assert_eq!(written.len(), 6);
        let mut cache = first.into_cache();
        assert_eq!(cache.len(), held.max(1) + 5);
        cache.truncate(held);
        let mut second = start(cache, &prompt);
        let ids: Vec<u32> = second.by_ref().map(|id| id.unwrap()).collect();
        assert_eq!((ids, second.finish().unwrap()), whole, "{held} tokens held");
        assert_eq!(second.into_cache().len(), 17);
    }
}

#[test]
fn side_by_side_refuses_what_one_alone_refuses() {
    let (model, _) = model(&rich(), 47);
    let (selection, greedy) = (Selection::none(), Sampling::GREEDY);
    let limits = limits(3, 5, &[]);
    let all = |prompts: &[&[u32]]| {
        let two = NonZeroUsize::new(2).unwrap();
        let mut each = |_, _| ControlFlow::Continue(());
        continue_all(&model, &selection, prompts, greedy, &limits, two, &mut each)
    };
    let none = all(&[]);
    assert_eq!(none.unwrap(), []);
    let empty = all(&[&[1], &[]]);
    assert!(matches!(empty, Err(Error::EmptyPrompt)));
    let long: [&[u32]; 2] = [&[1], &[1, 2, 3, 4, 5]];
    let long = all(&long);
    assert!(matches!(
        long,
        Err(Error::PromptTooLong {
            tokens: 5,
            limit: 5
        })
    ));
}
