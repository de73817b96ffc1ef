//! Rows with an instruction, in the prompts that Stanford's Alpaca was trained on and that models like it expect.

/// The prompt of an instruction; an input that is empty is none.
pub(crate) fn prompt(instruction: &str, input: &str) -> String {
    const TASK: &str = "Below is an instruction that describes a task";
    const REQUEST: &str = "Write a response that appropriately completes the request.";
    if input.is_empty() {
        format!("{TASK}. {REQUEST}\n\n### Instruction:\n{instruction}\n\n### Response:")
    } else {
        format!(
            "{TASK}, paired with an input that provides further context. {REQUEST}\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        )
    }
}
