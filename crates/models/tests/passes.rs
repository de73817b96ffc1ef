//! What a pass may and may not depend on: the cache, padding, neighbours in a row, what is asked.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{
    assert_near, evaluate, logits, model, plain, qwen2, rectangle, rich, rows, text, windowed, with,
};
use lowrank_adapter::{
    Ask, Batch, KvCache, Model, Part, Pass, Selection, Tokens, UNSUPERVISED, run,
};
use serde_json::json;

fn continued(model: &dyn Model, kv: &mut KvCache, text: &[u32]) -> Vec<Vec<f64>> {
    let batch = Batch::sequence(text, kv.len() as u32).unwrap();
    let ask = Ask::Logits((0..text.len() as u32).collect());
    let mut pass = Pass::evaluation(Selection::none());
    rows(&run(model, &batch, &ask, Some(kv), &mut pass).unwrap())
}

#[test]
fn a_cache_continues_the_text() {
    for (json, vocab) in [(rich(), 29), (plain(), 23), (windowed(), 23), (qwen2(), 23)] {
        let (model, _) = model(&json, 31);
        let text = text(15, vocab, 31);
        let whole = logits(&model, &text);
        for pieces in [&[1; 15][..], &[6, 1, 1, 4, 3], &[14, 1]] {
            let mut kv = KvCache::new();
            let mut got = Vec::new();
            let mut rest = &text[..];
            for piece in pieces {
                let (now, later) = rest.split_at(*piece);
                got.extend(continued(&model, &mut kv, now));
                rest = later;
            }
            assert_eq!(kv.len(), 15);
            assert_near(&got, &whole, 1e-12);
        }
    }
}

#[test]
fn a_shared_prefix_is_computed_once_for_all_continuations() {
    let (model, _) = model(&rich(), 32);
    let (prefix, ends) = (
        text(7, 29, 1),
        [text(4, 29, 2), text(4, 29, 3), text(4, 29, 4)],
    );
    let mut kv = KvCache::new();
    continued(&model, &mut kv, &prefix);
    let mut kv = KvCache::beside(&[(&kv, 0); 3], 0).unwrap();
    let tokens = Tokens {
        rows: 3,
        length: 4,
        ids: ends.concat(),
        segments: vec![1; 12],
        positions: [7, 8, 9, 10].repeat(3),
    };
    let batch = Batch::new(tokens, vec![UNSUPERVISED; 12]).unwrap();
    let ask = Ask::Logits((0..12).collect());
    let mut pass = Pass::evaluation(Selection::none());
    let got = rows(&run(&model, &batch, &ask, Some(&mut kv), &mut pass).unwrap());
    for (row, end) in ends.iter().enumerate() {
        let whole = logits(&model, &[&prefix[..], end].concat());
        assert_near(&got[row * 4..][..4], &whole[7..], 1e-12);
    }
}

#[test]
fn padding_changes_nothing() {
    for json in [rich(), windowed(), qwen2()] {
        let (model, _) = model(&json, 33);
        let texts = [text(5, 23, 1), text(11, 23, 2), text(2, 23, 3)];
        for length in [11, 16] {
            let batch = rectangle(&texts, length);
            let ask = Ask::Logits((0..3 * length as u32).collect());
            let got = rows(&evaluate(&model, &batch, &ask));
            for (row, text) in texts.iter().enumerate() {
                assert_near(
                    &got[row * length..][..text.len()],
                    &logits(&model, text),
                    1e-12,
                );
            }
        }
    }
}

#[test]
fn packed_texts_do_not_see_each_other() {
    let (model, _) = model(&plain(), 34);
    let (first, second) = (text(6, 23, 1), text(9, 23, 2));
    let ids = [&first[..], &second].concat();
    let labels = ids.iter().map(|id| *id as i32).collect();
    let tokens = Tokens {
        rows: 1,
        length: 16,
        ids: [&ids[..], &[0]].concat(),
        segments: [vec![1; 6], vec![2; 9], vec![0]].concat(),
        positions: (0..6).chain(0..9).chain([0]).collect(),
    };
    let packed = Batch::new(tokens, [labels, vec![UNSUPERVISED]].concat()).unwrap();
    let separate = rectangle(&[first, second], 9);
    assert_eq!(packed.targets().len(), 5 + 8);
    let losses = |batch| {
        vec![
            evaluate(&model, batch, &Ask::Losses)
                .to_vec1::<f64>()
                .unwrap(),
        ]
    };
    assert_near(&losses(&packed), &losses(&separate), 1e-12);
}

#[test]
fn only_what_is_asked_is_returned() {
    let (model, _) = model(&rich(), 35);
    let batch = rectangle(&[text(8, 29, 1), text(6, 29, 2)], 8);
    let all = rows(&evaluate(&model, &batch, &Ask::Logits((0..16).collect())));
    let some = rows(&evaluate(&model, &batch, &Ask::Logits(vec![9, 2, 9])));
    assert_near(
        &some,
        &[all[9].clone(), all[2].clone(), all[9].clone()],
        1e-13,
    );
    let nothing = evaluate(&model, &batch, &Ask::Logits(Vec::new()));
    assert_eq!(nothing.dims(), [0, 29]);
}

#[test]
fn without_targets_there_are_no_losses() {
    let (model, _) = model(&rich(), 36);
    let batch = Batch::sequence(&text(4, 29, 1), 0).unwrap();
    let losses = evaluate(&model, &batch, &Ask::Losses);
    assert_eq!(losses.dims(), [0]);
    assert_eq!(losses.to_vec1::<f64>().unwrap(), [0.0; 0]);
}

#[test]
fn evaluation_builds_no_graph() {
    let (mut model, _) = model(&rich(), 37);
    lowrank_adapter::train_all(&mut model, "whole").unwrap();
    let batch = rectangle(&[text(8, 29, 1), text(6, 29, 2)], 8);
    for ask in [Ask::Losses, Ask::Logits(vec![3, 11])] {
        let mut pass = Pass::evaluation(Selection::one("whole"));
        let result = run(&model, &batch, &ask, None, &mut pass).unwrap();
        assert!(!result.track_op(), "{ask:?}");
    }
}

#[test]
fn parts_come_in_the_order_of_the_forward_pass() {
    let (mut model, _) = model(&with(rich(), json!({"num_hidden_layers": 1})), 38);
    let mut seen = Vec::new();
    model.parts(&mut |part| {
        seen.push(match part {
            Part::Embedding(embedding) => format!("embedding {}", embedding.path()),
            Part::Norm(norm) => format!("norm {}", norm.path()),
            Part::Linear(linear) => format!("linear {}", linear.path()),
            Part::Head(head) => format!("head {} = {:?}", head.path(), head.tied_to()),
        });
    });
    let layer = "model.layers.0";
    assert_eq!(
        seen,
        [
            "embedding model.embed_tokens".to_owned(),
            format!("norm {layer}.input_layernorm"),
            format!("linear {layer}.self_attn.q_proj"),
            format!("linear {layer}.self_attn.k_proj"),
            format!("linear {layer}.self_attn.v_proj"),
            format!("linear {layer}.self_attn.o_proj"),
            format!("norm {layer}.post_attention_layernorm"),
            format!("linear {layer}.mlp.gate_proj"),
            format!("linear {layer}.mlp.up_proj"),
            format!("linear {layer}.mlp.down_proj"),
            "norm model.norm".to_owned(),
            "head lm_head = Some(\"model.embed_tokens\")".to_owned(),
        ]
    );
}

#[test]
fn what_the_model_cannot_take_is_refused_by_name() {
    let (model, _) = model(&plain(), 39);
    let refused = |batch: &Batch, ask: &Ask| {
        let mut pass = Pass::evaluation(Selection::none());
        run(&model, batch, ask, None, &mut pass)
            .unwrap_err()
            .to_string()
    };
    let batch = Batch::sequence(&[3, 22, 23, 5], 0).unwrap();
    assert_eq!(
        refused(&batch, &Ask::Losses),
        "token 23 is not in the model's vocabulary of 23 tokens"
    );
    let batch = Batch::sequence(&[3, 22, 4], 38).unwrap();
    assert_eq!(
        refused(&batch, &Ask::Losses),
        "position 40 is beyond the model's limit of 40 tokens (`max_position_embeddings`)"
    );
    let tokens = rectangle(&[vec![3, 22, 4]], 3).tokens().as_ref().clone();
    let batch = Batch::new(tokens.clone(), vec![3, 22, 23]).unwrap();
    assert_eq!(
        refused(&batch, &Ask::Losses),
        "label 23 is not in the model's vocabulary of 23 tokens"
    );
    let batch = Batch::new(tokens, vec![3, 22, 4]).unwrap();
    assert_eq!(
        refused(&batch, &Ask::Logits(vec![1, 3])),
        "gather_rows: index 3 is out of range, the table has 3 rows"
    );
}

#[test]
fn padding_may_lie_beyond_the_last_position() {
    let (model, _) = model(&plain(), 40);
    let long = text(40, 23, 1);
    let short = evaluate(
        &model,
        &rectangle(std::slice::from_ref(&long), 40),
        &Ask::Losses,
    );
    let padded = evaluate(&model, &rectangle(&[long], 43), &Ask::Losses);
    let losses = |losses: &candle_core::Tensor| vec![losses.to_vec1::<f64>().unwrap()];
    assert_near(&losses(&padded), &losses(&short), 1e-12);
}
