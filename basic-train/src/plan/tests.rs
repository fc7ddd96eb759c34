//! Compares plans with known counts and measured memory.

use std::fs;
use std::path::{Path, PathBuf};

use basic_data::{OnError, SkipLimit};
use serde_json::json;

use super::*;
use crate::recipe::{Encoders, Mode};

fn host() -> Device {
    DeviceSpec::Cpu.open().unwrap()
}

/// LLaVA-1.5's CLIP and a Vicuna, the defaults of `LlavaConfig`.
fn vicuna(layers: usize, hidden: usize, intermediate: usize, heads: usize) -> LlavaConfig {
    let text = json!({ "model_type": "llama", "vocab_size": 32001, "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": intermediate, "num_attention_heads": heads, "max_position_embeddings": 4096 });
    LlavaConfig::from_value(&json!({ "model_type": "llava", "text_config": text })).unwrap()
}

fn recipe(text: &str) -> Recipe {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    let common = "[model]\ncheckpoint = \"x\"\n[data]\npath = \"gone.json\"\n";
    fs::write(&path, format!("{text}\n{common}")).unwrap();
    Recipe::open(&path, &[]).unwrap()
}

fn lengths(positions: u64, samples: Option<u64>) -> Lengths {
    Lengths { samples, mean: positions as f64, longest: positions, images: 1, measured: 0 }
}

fn plan(recipe: &Recipe, config: &LlavaConfig, data: Lengths) -> Plan {
    Plan::of(recipe, config, data, &PlanOptions::default(), &host(), Vec::new()).unwrap()
}

#[test]
fn parameters_are_those_of_llava_15() {
    let recipe = recipe("stage = \"pretrain\"\ntrain = { batch_size = 256, epochs = 1.0, micro_batch = 32 }");
    let plan = plan(&recipe, &vicuna(32, 4096, 11008, 32), lengths(704, Some(558_128)));
    let counts: Vec<u64> = plan.parts.iter().map(|part| part.parameters).collect();
    // transformers' CLIPVisionModel of ViT-L/14-336; two layers 1024 -> 4096 -> 4096; Llama 2 7B with one more row in
    // the embedding table and in the output head.
    assert_eq!(counts, [303_507_456, 20_979_712, 6_738_415_616 + 2 * 4096]);
    assert_eq!(plan.trained, 20_979_712);
    assert_eq!((plan.steps, plan.visual_tokens), (Some(2181), 576));
    assert_eq!(plan.tokens, Some(2181 * 256 * 704));
    assert_eq!(plan.memory.moments, 8 * 20_979_712);
    assert_eq!(plan.memory.gradients, 2 * 4 * 20_979_712, "32 of 256 at once: a sum and what is added");
    assert_eq!(plan.memory.weights, 4 * plan.parameters);
}

#[test]
fn gradients_in_bf16_are_summed_in_f32() {
    let config = vicuna(32, 4096, 11008, 32);
    for (micro, bytes) in [("", 2), (", micro_batch = 32", 2 + 4)] {
        let train = format!("train = {{ batch_size = 256, steps = 1, dtype = \"bfloat16\"{micro} }}");
        let plan = plan(&recipe(&format!("stage = \"pretrain\"\n{train}")), &config, lengths(704, None));
        assert_eq!(plan.memory.gradients, bytes * plan.trained, "{micro}");
    }
}

#[test]
fn adapters_are_counted_and_quantized_matrices_are_small() {
    let config = vicuna(32, 4096, 11008, 32);
    let on = |device: &str, mode: &str, more: &str| {
        let text = format!(
            "stage = \"finetune\"\ndevice = \"{device}\"\n\
             train = {{ batch_size = 16, steps = 1, dtype = \"bfloat16\" }}\n\
             [parts.decoder]\nmode = \"{mode}\"\n{more}"
        );
        plan(&recipe(&text), &config, lengths(2048, None))
    };
    let with = |mode: &str, more: &str| on("cpu", mode, more);
    let lora = with("lora", "");
    // Rank 128 on seven matrices per layer: 4 (d + d) + 3 (d + I).
    assert_eq!(lora.parts[2].trained, 128 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008)));
    let matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008);
    assert_eq!(lora.memory.composed_weights, 0);
    assert_eq!(
        with("qlora", "block = 32").memory.composed_weights,
        2 * matrices,
        "each is dense for the backward pass"
    );
    let some = with("lora", "rank = 8\ntargets = [\"q_proj\", \"v_proj\"]");
    assert_eq!(some.parts[2].trained, 8 * 32 * 2 * 2 * 4096);
    // A GPU packs the elements, a CPU uses a byte for each; a scale takes four bytes.
    for (device, more, packed) in [
        ("cuda:0", "", matrices / 2 + matrices / 64 * 4),
        ("cuda:0", "bits = 8\nblock = 32", matrices + matrices / 32 * 4),
        ("cpu", "block = 32", matrices + matrices / 32 * 4),
    ] {
        let saved = lora.memory.weights - on(device, "qlora", more).memory.weights;
        assert_eq!(saved, 2 * matrices - packed, "{device} {more}");
    }
    let full = with("full", "");
    assert_eq!(full.memory.master_weights, 4 * full.trained);
    assert!(!full.fits(80_000_000_000) && full.trained > 6_700_000_000);
}

#[test]
fn recompute_keeps_one_layers_activations_and_the_others_inputs() {
    let config = vicuna(32, 4096, 11008, 32);
    let text = "stage = \"finetune\"\ntrain = { batch_size = 16, steps = 1, dtype = \"bfloat16\", recompute = true }";
    let plan = plan(&recipe(text), &config, lengths(2048, None));
    let stream = 16 * 2048 * 4096 * 2;
    // 2 d for the norms' inputs, 2 d for the matrices' inputs, queries, keys, values and output, three times the MLP's
    // width, and a log-sum-exp.
    let layer = 16 * 2048 * (2 * (8 * 4096 + 3 * 11008) + 4 * 32);
    assert_eq!(plan.memory.decoder_activations, 2 * stream + 32 * stream + layer);
    assert_eq!(plan.memory_otherwise.decoder_activations, 2 * stream + 32 * layer);
    assert!(plan.memory_otherwise.total > plan.memory.total);
}

#[test]
fn the_estimate_is_near_what_was_measured() {
    // docs/performance.md: `basic bench --preset small`, peak RSS in MiB.
    let config = json!({
        "model_type": "llava", "image_token_index": 31999,
        "text_config": { "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 8 },
        "vision_config": { "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6,
            "num_attention_heads": 4, "image_size": 224, "patch_size": 16 },
    });
    let config = LlavaConfig::from_value(&config).unwrap();
    for (stage, supervised, measured) in
        [("pretrain", false, 591.0), ("pretrain", true, 606.0), ("finetune", false, 1296.0), ("finetune", true, 1376.0)]
    {
        let text = format!(
            "stage = \"{stage}\"\nobjective = {{ das = {supervised}, sds = {supervised} }}\n\
             train = {{ batch_size = 4, steps = 1, vision_cache_mib = 0 }}"
        );
        let plan = plan(&recipe(&text), &config, lengths(261, None));
        let estimate = plan.memory.total as f64 / f64::from(1 << 20);
        println!("{stage} {supervised}: {estimate:.0} MiB, {measured} measured");
        assert!((estimate / measured - 1.0).abs() < 0.15, "{stage} {supervised}: {estimate} MiB, not {measured}");
    }
}

/// The models of the paper's rows, with the fields of their config.json on the hub that the computation needs.
fn models(dir: &Path) -> impl Fn(&str) -> PathBuf {
    let clip = json!({ "model_type": "clip", "vision_config": { "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14 } });
    let siglip = json!({ "model_type": "siglip", "vision_config": { "model_type": "siglip_vision_model",
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14 } });
    let all = [
        ("openai/clip-vit-large-patch14-336", clip),
        ("google/siglip-so400m-patch14-384", siglip),
        ("lmsys/vicuna-7b-v1.5", json!({ "model_type": "llama", "max_position_embeddings": 4096 })),
        (
            "lmsys/vicuna-13b-v1.5",
            json!({ "model_type": "llama", "max_position_embeddings": 4096, "hidden_size": 5120,
                "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40 }),
        ),
        (
            "google/gemma-2b-it",
            json!({ "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
                "num_attention_heads": 8, "num_key_value_heads": 1 }),
        ),
        ("microsoft/Phi-3-mini-4k-instruct", json!({ "model_type": "phi3", "sliding_window": 2047 })),
        (
            "mistralai/Mistral-7B-Instruct-v0.2",
            json!({ "model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": null }),
        ),
    ];
    for (name, config) in all {
        let path = dir.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), config.to_string()).unwrap();
    }
    let dir = dir.to_path_buf();
    move |name| dir.join(name)
}

#[test]
fn every_recipe_of_the_papers_runs_has_a_plan_with_its_hyperparameters() {
    let dir = tempfile::tempdir().unwrap();
    let path_of = models(dir.path());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let read = |name: &str| Recipe::open(&folder.join(name), &[]).unwrap_or_else(|e| panic!("{e}"));
    let mut seen = 0;
    // Parameters of the decoders in millions: Vicuna's, Gemma's (whose output head is its embedding table), Phi-3's,
    // Mistral's.
    for (row, millions, layers) in [
        ("llava15-7b", 6738, 32),
        ("llava15-13b", 13015, 40),
        ("siglip-7b", 6738, 32),
        ("siglip-13b", 13015, 40),
        ("gemma-2b", 2506, 18),
        ("phi3-mini", 3821, 32),
        ("mistral-7b", 7241, 32),
    ] {
        for arm in ["llava", "basic"] {
            let pretrain = read(&format!("{row}-pretrain-{arm}.toml"));
            let mut finetune = read(&format!("{row}-finetune-{arm}.toml"));
            assert_eq!(finetune.model.checkpoint, pretrain.output, "{row}: the second stage starts from the first");
            for (recipe, batch, lr, micro) in [(&pretrain, 256, 1e-3, 32), (&finetune, 128, 2e-5, 16)] {
                assert_eq!((recipe.train.batch_size, recipe.lr()), (batch, lr), "{row}");
                assert_eq!((recipe.train.epochs, recipe.train.micro_batch), (Some(1.0), Some(micro)), "{row}");
                assert_eq!((recipe.optimizer.weight_decay, recipe.schedule.warmup_ratio), (0.0, 0.03), "{row}");
                assert_eq!(recipe.objective.supervises(), arm == "basic", "{row}");
                assert_eq!(
                    (recipe.objective.basic.lambda_das, recipe.objective.basic.lambda_sds),
                    (1.0, 0.01),
                    "{row}"
                );
                assert_eq!(recipe.objective.basic.resolve_k(layers).unwrap(), layers / 2, "{row}");
            }
            let mut whole = pretrain.clone();
            let vision = pretrain.model.first_vision().unwrap().to_str().unwrap();
            whole.model.vision = Some(Encoders::One(path_of(vision)));
            whole.model.llm = pretrain.model.llm.as_ref().map(|name| path_of(name.to_str().unwrap()));
            finetune.model = whole.model.clone();
            for (recipe, samples, steps) in [(whole, 558_128, 2181), (finetune, 665_298, 5198)] {
                let options = PlanOptions { samples: Some(samples), ..PlanOptions::default() };
                let plan = Plan::new(&recipe, &options, &host()).unwrap_or_else(|e| panic!("{row}: {e}"));
                assert_eq!(plan.steps, Some(steps), "{row}");
                assert_eq!(plan.parts[2].parameters / 1_000_000, millions, "{row}");
                let modes: Vec<Mode> = plan.parts.iter().map(|part| part.mode).collect();
                let decoder = if plan.stage == Stage::Pretrain { Mode::Frozen } else { Mode::Full };
                assert_eq!(modes, [Mode::Frozen, Mode::Full, decoder], "{row}");
                assert!(plan.notes.iter().any(|note| note.contains("blip") || note.contains("mix665k")), "{row}");
                assert_eq!(plan.visual_tokens, if row.starts_with("siglip") { 729 } else { 576 });
                seen += 1;
            }
        }
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), seen, "every file of recipes/ is a row here");
}

#[test]
fn lengths_are_measured_where_the_data_is() {
    let dir = tempfile::tempdir().unwrap();
    let answer = "x".repeat(400);
    let turn = |from: &str, value: &str| json!({ "from": from, "value": value });
    let sample = |answer: &str| json!({ "conversations": [turn("human", "What?"), turn("gpt", answer)] });
    let data = dir.path().join("data.json");
    fs::write(&data, json!([sample("yes"), sample(&answer)]).to_string()).unwrap();
    let mut recipe = recipe("stage = \"finetune\"\ntrain = { batch_size = 2, epochs = 3.0 }");
    recipe.data.path = Some(data);
    let lengths = Lengths::measure(&recipe, &vicuna(2, 64, 64, 2)).unwrap();
    // Without a tokenizer: four bytes per token, and six tokens around each turn.
    assert_eq!((lengths.samples, lengths.longest, lengths.measured), (Some(2), 2 + 100 + 12, 2));
    assert_eq!(lengths.mean, (2.0 + 1.0 + 12.0 + 114.0) / 2.0);

    // Broken samples are left out as training leaves them out, and the others are measured.
    let mut broken = sample("yes");
    broken["image"] = "none.png".into();
    fs::write(recipe.data.path.as_ref().unwrap(), json!([broken, sample("yes"), broken]).to_string()).unwrap();
    assert!(Lengths::measure(&recipe, &vicuna(2, 64, 64, 2)).is_err());
    recipe.data.on_error = OnError::Skip;
    recipe.data.max_skipped = Some(SkipLimit::Samples(2));
    let lengths = Lengths::measure(&recipe, &vicuna(2, 64, 64, 2)).unwrap();
    assert_eq!((lengths.samples, lengths.measured, lengths.mean), (Some(3), 1, 15.0));
}

#[test]
fn a_plan_says_whether_it_fits_and_what_would_be_smaller() {
    let config = vicuna(32, 4096, 11008, 32);
    let text = "stage = \"finetune\"\ntrain = { batch_size = 16, epochs = 1.0 }";
    let options = PlanOptions { memory: Some(80_000_000_000), ..PlanOptions::default() };
    let plan = Plan::of(&recipe(text), &config, lengths(2048, None), &options, &host(), Vec::new()).unwrap();
    assert_eq!((plan.fits, plan.steps), (Some(false), None));
    let shown = plan.to_string();
    for part in ["6 738 423 808", "does not fit 74.51 GiB (--memory)", "recompute = true", "bfloat16", "--samples N"] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
}

/// A plan of LLaVA's second stage, or of its first, on so many ranks that share its batch.
fn on_ranks(config: &LlavaConfig, stage: &str, dtype: &str, mode: &str, ranks: usize, micro: usize) -> Plan {
    let (batch, positions) = if stage == "pretrain" { (256, 704) } else { (128, 2048) };
    let text = format!(
        "stage = \"{stage}\"\ndevice = \"cuda:0\"\n[parts.decoder]\nmode = \"{mode}\"\n[train]\nsteps = 1\n\
         recompute = true\nbatch_size = {batch}\nmicro_batch = {micro}\ndtype = \"{dtype}\""
    );
    let options = PlanOptions { devices: ranks, ..PlanOptions::default() };
    Plan::of(&recipe(&text), config, lengths(positions, None), &options, &host(), Vec::new()).unwrap()
}

fn sizes() -> [(&'static str, LlavaConfig); 2] {
    [("7B", vicuna(32, 4096, 11008, 32)), ("13B", vicuna(40, 5120, 13824, 40))]
}

/// The columns of docs/distributed.md's tables: the memory of one of the ranks, whether that fits, and the same for
/// one sample at once.
fn columns(all: &Plan, one: &Plan) -> String {
    let gib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 30));
    let fits = |plan: &Plan, bytes: u64| if plan.fits(bytes) { "yes" } else { "no" };
    let memory = &all.memory;
    let state = memory.gradients + memory.moments + memory.master_weights;
    let rest = memory.total - memory.weights - state - memory.buckets;
    let (small, large) = (80_000_000_000, 141_000_000_000);
    format!(
        "{} | {} | {} | {} | **{}** | {} | {} | {} | {} | {} |",
        gib(memory.weights),
        gib(state),
        gib(memory.buckets),
        gib(rest),
        gib(memory.total),
        fits(all, small),
        fits(all, large),
        gib(one.memory.total),
        fits(one, small),
        fits(one, large),
    )
}

/// The rows of docs/distributed.md: one of 8 ranks for every way to train, then a full finetune on 1 to 16 ranks.
fn distributed_rows() -> Vec<String> {
    let mut rows = Vec::new();
    for (size, config) in sizes() {
        for (name, stage, dtype, mode, micro) in [
            ("pretrain, f32", "pretrain", "float32", "frozen", 32),
            ("pretrain, bf16", "pretrain", "bfloat16", "frozen", 32),
            ("full, f32", "finetune", "float32", "full", 16),
            ("full, bf16", "finetune", "bfloat16", "full", 16),
            ("LoRA, bf16", "finetune", "bfloat16", "lora", 16),
            ("QLoRA, bf16 over 4 bits", "finetune", "bfloat16", "qlora", 16),
        ] {
            let of = |micro| on_ranks(&config, stage, dtype, mode, 8, micro);
            rows.push(format!("| {size}, {name} | {}", columns(&of(micro), &of(1))));
        }
    }
    for (size, config) in sizes() {
        for ranks in [1, 2, 4, 8, 16] {
            let of = |micro| on_ranks(&config, "finetune", "bfloat16", "full", ranks, micro);
            rows.push(format!("| {size}, {ranks} | {}", columns(&of(16), &of(1))));
        }
    }
    rows
}

#[test]
fn the_table_of_distributed_md_is_the_plans() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/distributed.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = distributed_rows();
    println!("{}", rows.join("\n"));
    for row in rows {
        assert!(page.contains(&row), "docs/distributed.md lacks\n{row}");
    }
}

#[test]
fn ranks_hold_a_share_of_what_the_recipe_divides() {
    let [(_, config), _] = sizes();
    let of = |shard: &str, ranks: usize, recompute: bool| {
        let text = format!(
            "stage = \"finetune\"\nparallel.shard = \"{shard}\"\ntrain = {{ batch_size = 128, micro_batch = 4, steps = 1, \
             dtype = \"bfloat16\", recompute = {recompute} }}"
        );
        let options = PlanOptions { devices: ranks, ..PlanOptions::default() };
        Plan::of(&recipe(&text), &config, lengths(2048, None), &options, &host(), Vec::new()).unwrap()
    };
    let trained = 6_738_415_616 + 2 * 4096 + 20_979_712;
    assert_eq!(of("none", 8, true).trained, trained);
    let near = |found: u64, expected: u64| assert!(found.abs_diff(expected) < 64, "{found} and {expected}");
    for (shard, ranks, recompute, gradients, state) in [
        ("none", 8, true, 6 * trained, 12 * trained),
        ("optimizer", 8, true, 6 * trained, 12 * trained / 8),
        ("gradients", 8, true, 4 * trained / 8, 12 * trained / 8),
        ("gradients", 4, false, 4 * trained / 4 + 2 * trained, 12 * trained / 4),
        ("gradients", 1, true, 6 * trained, 12 * trained),
    ] {
        let memory = of(shard, ranks, recompute).memory;
        near(memory.gradients, gradients);
        near(memory.moments + memory.master_weights, state);
        assert_eq!(memory.buckets > 0, shard != "none" && ranks > 1, "{shard} {ranks}");
    }
    // A layer of Llama 7B: four matrices of attention, three of the MLP, two norms. Its gradients in bf16, joined, in f32,
    // and an eighth of their sum; the embedding table, the head, the last norm and the projector wait in bf16.
    let layer: u64 = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096;
    let waiting = 2 * 32001 * 4096 + 4096 + 20_979_712;
    assert_eq!(of("gradients", 8, true).memory.buckets, layer * (2 + 2 + 4) + layer / 2 + 2 * waiting);
}

#[test]
fn a_full_finetune_of_7b_fits_eight_gpus_of_80_gb() {
    let [(_, config), _] = sizes();
    let plan = on_ranks(&config, "finetune", "bfloat16", "full", 8, 16);
    assert!(plan.memory.total <= 55 << 30, "{} bytes on each", plan.memory.total);
    assert!(plan.to_string().contains("which divide gradients and the optimizer's state"));
}

#[test]
fn what_64_bits_do_not_hold_is_an_error_that_names_the_keys_and_never_a_small_number() {
    let text = json!({ "model_type": "llama", "vocab_size": 1 << 24, "hidden_size": 1 << 17, "num_hidden_layers": 4096,
        "intermediate_size": 1 << 20, "num_attention_heads": 1024, "max_position_embeddings": 1 << 30 });
    let config = LlavaConfig::from_value(&json!({ "model_type": "llava", "text_config": text })).unwrap();
    for (train, positions) in [
        ("batch_size = 1000000", 1 << 30),
        ("batch_size = 1000000, recompute = true", 1 << 30),
        ("batch_size = 1000000", u64::MAX),
        ("batch_size = 1000000, micro_batch = 1", u64::MAX),
    ] {
        let recipe = recipe(&format!("stage = \"finetune\"\ntrain = {{ epochs = 1.0, {train} }}"));
        let data = lengths(positions, Some(u64::MAX));
        let error = Plan::of(&recipe, &config, data, &PlanOptions::default(), &host(), Vec::new()).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, PlanError::TooLarge { .. }), "{train}: {said}");
        assert!(said.contains("2^64 bytes") && said.contains("train.batch_size"), "{said}");
    }
    // Models of any size are counted.
    let recipe = recipe("stage = \"finetune\"\ntrain = { epochs = 1.0, batch_size = 1 }");
    let plan = plan(&recipe, &config, lengths(4096, Some(1)));
    assert!(plan.memory.total > 4 * plan.parameters && plan.parameters > 1 << 50, "{}", plan.parameters);
}
