//! The model card beside an adapter.

use serde_json::{Map, Value};

/// A README with the front matter that the hub reads. `tensors` and `parameters` count what the adapter's file holds.
pub(crate) fn card(
    config: &Map<String, Value>,
    family: &str,
    tensors: usize,
    parameters: usize,
) -> String {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let base = text("base_model_name_or_path");
    let peft_type = text("peft_type").unwrap_or_default();
    // A JSON string is a YAML string, whatever the name holds.
    let base_line = base.map_or(String::new(), |base| {
        format!("base_model: {}\n", Value::from(base))
    });
    let shown = base.unwrap_or("(not recorded)");
    let argument = base.unwrap_or("BASE");
    format!(
        "---
{base_line}library_name: peft
tags:
- lowrank
- {family}
---
# A {family} adapter

- base model: {shown}
- family: {family} (`peft_type`: `{peft_type}`)
- {parameters} parameters in {tensors} tensors

## Use

With lowrank:

```sh
lowrank eval --model {argument} --adapter . --data rows.jsonl
```

With PEFT, if it knows the type `{peft_type}`:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({python})
model = PeftModel.from_pretrained(base, \".\")
```
",
        python = Value::from(argument),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_card_names_the_base_the_family_and_the_counts() {
        let Value::Object(config) =
            json!({"peft_type": "LORA", "base_model_name_or_path": "org/\"odd\": name"})
        else {
            unreachable!()
        };
        let card = card(&config, "lora", 14, 2345);
        assert!(card.starts_with(
            "---\nbase_model: \"org/\\\"odd\\\": name\"\nlibrary_name: peft\ntags:\n- lowrank\n- lora\n---\n"
        ));
        assert!(card.contains("2345 parameters in 14 tensors"));
        assert!(card.contains("if it knows the type `LORA`"));
        let without = super::card(&Map::new(), "lora", 2, 5);
        assert!(without.starts_with("---\nlibrary_name: peft\n"));
        assert!(without.contains("base model: (not recorded)"));
    }
}
