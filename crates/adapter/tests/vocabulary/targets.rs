use lowrank_adapter::target::{Matcher, OneOrMany, Pattern, Rules, Targets, is_saved};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn list(names: &[&str]) -> Targets {
    Targets::List(names.iter().map(|&name| name.to_owned()).collect())
}

fn pattern(expression: &str) -> Targets {
    Targets::Pattern(expression.to_owned())
}

fn rules(target_modules: &Targets) -> Rules<'_> {
    Rules {
        target_modules,
        exclude_modules: None,
        modules_to_save: &[],
        layers_to_transform: None,
        layers_pattern: None,
    }
}

#[test]
fn a_target_is_a_suffix_or_a_whole_match() {
    let rows: [(Value, &str, bool); 12] = [
        (json!(["q_proj"]), "model.layers.0.q_proj", true),
        (json!(["q_proj"]), "q_proj", true),
        (json!(["q_proj"]), "model.layers.0.xq_proj", false),
        (json!(["proj"]), "model.layers.0.q_proj", false),
        (json!(["0.q_proj"]), "model.layers.0.q_proj", true),
        (json!(["0.q_proj"]), "model.layers.10.q_proj", false),
        (json!(["a", "q_proj"]), "model.layers.0.q_proj", true),
        (json!("q_proj"), "model.layers.0.q_proj", false),
        (json!(".*q_proj"), "model.layers.0.q_proj", true),
        (json!(r".*\.[01]\..*_proj"), "model.layers.1.v_proj", true),
        (json!(r".*\.[01]\..*_proj"), "model.layers.11.v_proj", false),
        (json!("model|head"), "model.head", false),
    ];
    for (targets, path, expected) in rows {
        let targets: Targets = serde_json::from_value(targets).unwrap();
        let matcher = Matcher::new(rules(&targets)).unwrap();
        assert_eq!(
            matcher.matches(path).unwrap(),
            expected,
            "{targets:?} {path}"
        );
    }
}

#[test]
fn layers_are_the_outermost_number_unless_the_whole_path_is_named() {
    let path = "model.layers.3.mlp.experts.5.w1";
    let rows = [
        (list(&["w1"]), OneOrMany::Many(vec![3]), None, true),
        (list(&["w1"]), OneOrMany::Many(vec![5]), None, false),
        (list(&["w1"]), OneOrMany::One(3), None, true),
        (list(&["w1"]), OneOrMany::Many(vec![]), None, true),
        (list(&[path]), OneOrMany::Many(vec![5]), None, true),
        (list(&[path]), OneOrMany::Many(vec![3]), None, true),
        (list(&["w1"]), OneOrMany::One(3), Some("layers"), true),
        (list(&["w1"]), OneOrMany::One(5), Some("experts"), true),
        (list(&["w1"]), OneOrMany::One(3), Some("experts"), false),
        (list(&["w1"]), OneOrMany::One(3), Some("blocks"), false),
    ];
    for (targets, layers, pattern, expected) in rows {
        let patterns = pattern.map(|name| OneOrMany::One(name.to_owned()));
        let matcher = Matcher::new(Rules {
            layers_to_transform: Some(&layers),
            layers_pattern: patterns.as_ref(),
            ..rules(&targets)
        });
        let matches = matcher.unwrap().matches(path).unwrap();
        assert_eq!(matches, expected, "{targets:?} {layers:?} {pattern:?}");
    }
}

#[test]
fn exclusion_and_modules_to_save_win() {
    let targets = list(&["q_proj", "v_proj", "lm_head"]);
    let exclude = pattern(r".*\.1\..*");
    let saved = ["lm_head".to_owned()];
    let matcher = Matcher::new(Rules {
        exclude_modules: Some(&exclude),
        modules_to_save: &saved,
        ..rules(&targets)
    })
    .unwrap();
    assert!(matcher.matches("model.layers.0.q_proj").unwrap());
    assert!(!matcher.matches("model.layers.1.q_proj").unwrap());
    assert!(!matcher.matches("lm_head").unwrap());
}

#[test]
fn modules_to_save_match_raw_endings_of_every_module_on_the_way() {
    let saved = |path: &str, entry: &str| is_saved(path, &[entry.to_owned()]);
    assert!(saved("lm_head", "head"));
    assert!(saved("lm_head", "lm_head"));
    assert!(saved("model.layers.0.input_layernorm", "norm"));
    assert!(saved("model.layers.0.mlp.up_proj", "mlp"));
    assert!(!saved("lm_head", "lm"));
    assert!(!saved("model.layers.0.mlp.up_proj", "ml"));
}

#[test]
fn the_first_pattern_in_alphabetical_order_counts() {
    for text in [r#"{"layers.1.q":4,"q":2}"#, r#"{"q":2,"layers.1.q":4}"#] {
        let ranks: Pattern<usize> = serde_json::from_str(text).unwrap();
        let get = |path: &str| ranks.get(path, 8).unwrap();
        assert_eq!(get("model.layers.1.q"), 4);
        assert_eq!(get("model.layers.2.q"), 2);
        assert_eq!(get("q"), 2);
        assert_eq!(get("model.layers.1.freq"), 8);
        assert_eq!(get("model.layers.11.q"), 2);
        let again = serde_json::to_string(&ranks).unwrap();
        assert_eq!(again, r#"{"layers.1.q":4,"q":2}"#);
    }
    let ranks = Pattern(BTreeMap::from([(r".*\.[02]\..*_proj".to_owned(), 3)]));
    assert_eq!(ranks.get("model.layers.2.mlp.up_proj", 8).unwrap(), 3);
    assert_eq!(ranks.get("model.layers.1.mlp.up_proj", 8).unwrap(), 8);
}

#[test]
fn what_is_no_rule_is_refused() {
    let one = OneOrMany::One(1);
    let layers = OneOrMany::One("layers".to_owned());
    let (regex, names) = (pattern("q.*"), list(&["q_proj"]));
    let message = |rules: Rules<'_>| Matcher::new(rules).unwrap_err().to_string();
    assert_eq!(
        message(Rules {
            layers_to_transform: Some(&one),
            ..rules(&regex)
        }),
        "`layers_to_transform` needs `target_modules` to be a list of names"
    );
    assert_eq!(
        message(Rules {
            layers_pattern: Some(&layers),
            ..rules(&names)
        }),
        "`layers_pattern` needs `layers_to_transform`"
    );
    let open = message(rules(&pattern("(q_proj")));
    assert!(
        open.starts_with("`target_modules`: `(q_proj` is not a regular expression: "),
        "{open}"
    );
    let ranks = Pattern(BTreeMap::from([("[".to_owned(), 3)]));
    let error = ranks.get("q", 8).unwrap_err().to_string();
    assert!(error.contains("`[` is not a regular expression"), "{error}");
}

#[test]
fn an_expression_that_takes_too_long_is_refused() {
    let path = "a".repeat(60);
    let matcher = Matcher::new(rules(&pattern(r"(a|aa|aaa)+(?<!a)b\1"))).unwrap();
    let error = matcher.matches(&path).unwrap_err().to_string();
    assert!(error.contains("could not be matched"), "{error}");
}
