# slices.sh LOWRANK MODEL DATA: BoolQ (first 500) and GSM8K (first 100), as rows of a prompt and of messages; a JSON object a line in results.jsonl
L=$1; M=$2; D=$3; rm -rf runs results.jsonl; mkdir -p runs
for t in boolq gsm8k; do for p in train test; do python3 rows.py $D/$t/$p.jsonl $t-$p.jsonl; done; done
eval_() { # NAME ROWS MODEL [ADAPTER]
  local task=$1 form=$2 what=$3 rows=$4; shift 4
  local limit=500 more=""
  if [ $task = gsm8k ]; then limit=100; more="--task generate --max-new-tokens 200 --stop Question:"; 
  elif [ $form = messages ]; then more="--task generate --max-new-tokens 12"; fi
  echo "{\"task\":\"$task\",\"form\":\"$form\",\"what\":\"$what\",\"result\":$($L eval --data $rows --limit $limit $more --json "$@" 2>/dev/null)}" >> results.jsonl
}
for form in prompt messages; do for task in boolq gsm8k; do
  train=$D/$task/train.jsonl; test=$D/$task/test.jsonl; steps=120
  [ $form = messages ] && train=$task-train.jsonl && test=$task-test.jsonl
  [ $task = gsm8k ] && steps=80
  eval_ $task $form before $test --model $M
  $L train run.toml --quiet --set model.source=\"$M\" --set data.train=[\"$train\"] --set train.steps=$steps --set output.dir=\"runs/$task-$form\" 2> runs/$task-$form.log
  eval_ $task $form unmerged $test --model $M --adapter runs/$task-$form/adapter
  $L merge --model $M --adapter runs/$task-$form/adapter --out runs/$task-$form-merged --dtype f32 --verify > runs/$task-$form-merge.log 2>&1
  eval_ $task $form merged $test --model runs/$task-$form-merged
done; done
