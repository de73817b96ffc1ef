//! The page of synthetic runs.

#![expect(
    clippy::unwrap_used,
    reason = "a page that lacks what it must have fails its test"
)]

use lowrank_report::{Lines, Run, csv, page};
use std::fmt::Write as _;

/// Every element is closed, in order, and no character is left that markup reserves. Returns the text between tags.
fn text(page: &str) -> String {
    let alone = ["meta", "!doctype"];
    let (head, body) = page.split_once("<style>").unwrap();
    let (_, body) = body.split_once("</style>").unwrap();
    let page = [head, body].concat();
    let (mut open, mut text) = (Vec::new(), String::new());
    for part in page.split('<').skip(1) {
        let (tag, rest) = part.split_once('>').unwrap();
        assert!(!rest.contains(['>', '"', '\'']), "{part}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        text += rest;
        text.push('\n');
        let name = tag.trim_end_matches('/').split(' ').next().unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{part}");
        } else if !tag.ends_with('/') && !alone.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    text
}

fn run() -> Run {
    Run {
        name: "letters".to_owned(),
        run_file: "[model]\nsource = \"tiny\"\n[adapter]\nfamily = \"lora\"\nr = 8\ntarget_modules = [\"q_proj\", \"v_proj\"]\n\
                   [data]\ntrain = [\"rows.jsonl\"]\n[train]\nlearning_rate = 0.002\n[train.groups.outer]\nlearning_rate_factor = 4.0\n"
            .to_owned(),
        total: 40,
        rows: 1200,
        held_out: 96,
        trainable_parameters: 45_312,
        version: "0.1.0".to_owned(),
        ..Run::default()
    }
}

/// Forty steps whose loss falls from 4.5 to 0.6, and two evaluations.
fn metrics() -> String {
    let mut text =
        "{\"step\":0,\"eval_loss\":4.5,\"eval_tokens\":40,\"eval_accuracy\":0.25}\n".to_owned();
    for step in 1..=40 {
        let loss = 4.6 - 0.1 * step as f64;
        let _ = writeln!(
            text,
            "{{\"step\":{step},\"loss\":{loss},\"lr\":0.002,\"grad_norm\":0.5,\"tokens\":100,\"tokens_per_second\":50.0,\
             \"peak_rss_mb\":640.5}}"
        );
        if step == 20 || step == 40 {
            let (loss, accuracy) = if step == 20 {
                (1.5, 0.875)
            } else {
                (2.0, 0.75)
            };
            let _ = writeln!(
                text,
                "{{\"step\":{step},\"eval_loss\":{loss},\"eval_tokens\":40,\"eval_accuracy\":{accuracy}}}"
            );
        }
    }
    text
}

/// The part of the page that is the figure with this title.
fn figure<'a>(page: &'a str, title: &str) -> &'a str {
    let begin = format!("<figcaption>{title}</figcaption>");
    let rest = page
        .split_once(&begin)
        .unwrap_or_else(|| panic!("{title} in {page}"))
        .1;
    rest.split_once("</figure>").unwrap().0
}

#[test]
fn a_run_is_told_in_facts_tables_and_plots() {
    let page = page(&run(), &Lines::parse(&metrics()));
    let text = text(&page);
    let words: Vec<&str> = text
        .split('\n')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    let after = |word: &str| words[words.iter().position(|found| *found == word).unwrap() + 1];
    assert_eq!(after("base"), "tiny");
    assert_eq!(after("family"), "lora");
    assert_eq!(after("trained parameters"), "45,312");
    assert_eq!(after("steps"), "40 of 40");
    assert_eq!(after("rows"), "1,200");
    assert_eq!(after("held-out rows"), "96");
    assert_eq!(after("time in steps"), "1 min 20 s");
    assert_eq!(after("tokens trained on"), "4,000");
    assert_eq!(after("most memory"), "641 MiB");
    assert_eq!(after("target_modules"), "q_proj, v_proj");
    assert_eq!(after("learning_rate"), "0.002");
    assert!(page.contains(
        "<tr><th>loss</th><td class=\"number\">4.5 <span class=\"quiet\">step 0</span></td>\
         <td class=\"number\">1.5 <span class=\"quiet\">step 20</span></td>\
         <td class=\"number\">2 <span class=\"quiet\">step 40</span></td></tr>"
    ));
    assert!(page.contains(
        "<tr><th>accuracy</th><td class=\"number\">0.25 <span class=\"quiet\">step 0</span></td>\
         <td class=\"number\">0.875 <span class=\"quiet\">step 20</span></td>\
         <td class=\"number\">0.75 <span class=\"quiet\">step 40</span></td></tr>"
    ));
    // Axes from 0 to 5 and to step 40: 210 to 10, and 52 to 406.
    let loss = figure(&page, "Loss");
    assert!(
        loss.contains("<path d=\"M52.0 30.0L229.0 150.0L406.0 130.0\"/>"),
        "{loss}"
    );
    let raw = loss.split_once("c0 pale\"><path d=\"").unwrap().1;
    assert!(raw.starts_with("M60.9 30.0L69.7 34.0L"), "{raw}");
    assert_eq!(loss.matches("<g class").count(), 3);
    // The third smoothed point: the mean of 4.5, 4.4 and 4.3 under weights 1/49, 1/7 and 1.
    let smooth = loss.split_once("c0 line\"><path d=\"").unwrap().1;
    let third = smooth.split('L').nth(2).unwrap();
    let mean = (4.5 / 49.0 + 4.4 / 7.0 + 4.3) / (1.0 / 49.0 + 1.0 / 7.0 + 1.0);
    assert_eq!(third, format!("78.5 {:.1}", 210.0 - 40.0 * mean));
    // What falls to a fortieth is on a logarithmic axis, from 0.1 to 5.
    let wide = metrics().replace("40,\"loss\":", "40,\"loss\":0.11,\"was\":");
    let wide = lowrank_report::page(&run(), &Lines::parse(&wide));
    let wide = figure(&wide, "Loss <span class=\"quiet\">logarithmic</span>");
    let y = 210.0 - 200.0 * (2.0f64 / 0.1).ln() / 50.0f64.ln();
    assert!(
        wide.contains(&format!("L406.0 {y:.1}\"/><circle")),
        "{wide}"
    );
    // One value over all steps: from 0.
    assert!(figure(&page, "Learning rate").contains("<path d=\"M60.9 10.0L69.7 10.0"));
    assert!(figure(&page, "Held-out accuracy").contains("<title>step 20: 0.875</title>"));
    assert!(!page.contains("Auxiliary loss") && !page.contains("Ranks"));
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<script"));
    assert!(page.contains("default-src &#39;none&#39;") || page.contains("default-src 'none'"));
}

#[test]
fn ranks_have_a_table_and_two_plots() {
    let text = "{\"step\":10,\"event\":\"allocate\",\"ranks\":{\"layers.0.q\":4,\"layers.1.q\":2,\"layers.0.up\":6}}\n\
                {\"step\":20,\"event\":\"allocate\",\"ranks\":{\"layers.0.q\":0,\"layers.1.q\":3,\"layers.0.up\":5}}\n";
    let page = page(&run(), &Lines::parse(text));
    let whole = figure(&page, "Ranks of all modules");
    // 12 and 8 of 12, at steps 10 and 20 of 20.
    let y = |ranks: f64| 210.0 - 200.0 * ranks / 15.0;
    assert!(
        whole.contains(&format!("M229.0 {:.1}L406.0 {:.1}", y(12.0), y(8.0))),
        "{whole}"
    );
    let kinds = figure(&page, "Mean rank by kind of module");
    assert!(
        kinds.contains("<title>step 20: 1.5</title>")
            && kinds.contains("<title>step 20: 5</title>")
    );
    assert!(kinds.contains("</i>q</span>") && kinds.contains("</i>up</span>"));
    assert!(page.contains(
        "<tr><th>layers.0.q</th><td style=\"--s:0.67\">4</td><td style=\"--s:0.00\">0</td></tr>"
    ));
    // Of many allocations the first and the last have columns.
    let mut many = String::new();
    for step in 1..=100 {
        let _ = writeln!(
            many,
            "{{\"step\":{step},\"event\":\"allocate\",\"ranks\":{{\"only\":{step}}}}}"
        );
    }
    let page = lowrank_report::page(&run(), &Lines::parse(&many));
    assert!(
        page.contains("16 of 100 allocations")
            && page.contains("<th>1</th>")
            && page.contains("<th>100</th>")
    );
    assert_eq!(page.matches("<td style").count(), 16);
}

#[test]
fn names_stay_text_wherever_they_come_from() {
    let hostile = "</style></title><script>alert(1)</script><img src=x onerror='y' \"";
    let quoted = hostile.replace('"', "\\\"");
    let run = Run {
        name: hostile.to_owned(),
        run_file: format!(
            "[model]\nsource = \"{quoted}\"\n[data]\ntrain = [\"{quoted}\"]\n[\"{quoted}\"]\n\"{quoted}\" = 1\n"
        ),
        version: hostile.to_owned(),
        failure: Some(hostile.to_owned()),
        ..run()
    };
    let metrics = format!(
        "{{\"step\":0,\"eval_{quoted}\":1.5}}\n{{\"step\":1,\"loss\":2,\"{quoted}\":3}}\n\
         {{\"step\":1,\"event\":\"{quoted}\",\"ranks\":{{\"a.{quoted}\":3}}}}\n"
    );
    let lines = Lines::parse(&metrics);
    assert_eq!(
        (
            lines.steps.len(),
            lines.evaluations.len(),
            lines.events.len()
        ),
        (1, 1, 1)
    );
    let page = page(&run, &lines);
    text(&page);
    assert!(!page.contains("<script") && !page.contains("<img"));
    assert_eq!(
        (
            page.matches("</style>").count(),
            page.matches("</title>").count()
        ),
        (1, 4)
    );
    // A run file that cannot be read is shown all the same.
    let run = Run {
        run_file: "<no toml".to_owned(),
        ..Run::default()
    };
    let page = lowrank_report::page(&run, &Lines::default());
    text(&page);
    assert!(page.contains("<pre>&lt;no toml</pre>") && !page.contains("Settings"));
}

#[test]
fn what_is_missing_is_said_or_left_out() {
    let empty = page(&run(), &Lines::default());
    text(&empty);
    assert!(
        empty.contains("There is nothing to draw yet")
            && empty.contains("0 of 40 steps when this was written")
    );
    assert!(!empty.contains("Held-out rows") && !empty.contains("<svg"));
    assert_eq!(csv(&Lines::default()), "step\r\n");

    let one = Lines::parse(
        "{\"step\":1,\"loss\":2.5,\"lr\":0,\"grad_norm\":null,\"tokens\":7,\"tokens_per_second\":0}\n",
    );
    let page = page(&Run { total: 1, ..run() }, &one);
    text(&page);
    let loss = figure(&page, "Loss");
    assert!(
        loss.contains("M406.0 110.0") && loss.contains("r=\"1.5\""),
        "{loss}"
    );
    assert!(
        !page.contains("Norm of the gradient")
            && !page.contains("NaN")
            && !page.contains("when this was written")
    );

    let nulls = "{\"step\":0,\"eval_loss\":null,\"eval_f1\":null}\n{\"step\":1,\"loss\":null}\n{\"step\":2,\"loss\":1}\n\
                 {\"step\":2,\"eval_loss\":3,\"eval_f1\":0.5}\n{\"step\":2,\"eval_loss\":null,\"eval_f1\":0.5}\n";
    let failed = Run {
        failure: Some("step 3: the loss is NaN".to_owned()),
        ..run()
    };
    let page = lowrank_report::page(&failed, &Lines::parse(nulls));
    text(&page);
    assert!(page.contains("Stopped after step 2 of 40: step 3: the loss is NaN"));
    assert!(page.contains(
        "<tr><th>loss</th><td class=\"number\">not finite <span class=\"quiet\">step 0</span></td>\
         <td class=\"number\">3 <span class=\"quiet\">step 2</span></td>\
         <td class=\"number\">not finite <span class=\"quiet\">step 2</span></td></tr>"
    ));
}

#[test]
fn the_best_is_of_what_was_trained_and_so_is_the_result() {
    let best_first = metrics().replacen("\"eval_accuracy\":0.25", "\"eval_accuracy\":1", 1);
    let run = Run {
        ended_early: true,
        result_of: Some(20),
        total: 50,
        ..run()
    };
    let page = page(&run, &Lines::parse(&best_first));
    text(&page);
    assert!(page.contains(
        "<tr><th>accuracy</th><td class=\"number\">1 <span class=\"quiet\">step 0</span></td>\
         <td class=\"number\">0.875 <span class=\"quiet\">step 20</span></td>"
    ));
    assert!(page.contains(
        "<p>Ended early, after step 40 of 50: evaluations were no longer better. The result is that of step 20, the best \
         evaluation.</p>"
    ));
    let whole = Run {
        ended_early: false,
        total: 40,
        ..run
    };
    let page = lowrank_report::page(&whole, &Lines::parse(&metrics()));
    assert!(page.contains("<p>The result is that of step 20, the best evaluation.</p>"));
    let last = Run {
        result_of: Some(40),
        ..whole
    };
    let page = lowrank_report::page(&last, &Lines::parse(&metrics()));
    assert!(!page.contains("The result is"));
}

/// As long as runs get, and as large as numbers get.
#[test]
fn long_runs_make_small_pages() {
    let mut text = String::new();
    for step in 1..=50_000_u64 {
        let loss = if step % 1000 == 0 { 1e308 } else { step as f64 };
        let _ = writeln!(
            text,
            "{{\"step\":{step},\"loss\":{loss:e},\"lr\":{}}}",
            f64::MIN_POSITIVE
        );
    }
    let page = page(&run(), &Lines::parse(&text));
    assert!(page.len() < 100_000, "{}", page.len());
    assert!(!page.contains("NaN") && !page.contains("inf"));
}
