use super::*;

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The names of everything below a directory.
fn names(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, above: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let name = format!("{above}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            }
            found.push(name);
        }
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found);
    found.sort();
    found
}

#[test]
fn a_world_goes_with_what_was_being_written_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let world = dir.path().join("world");
    let make = || {
        for name in ["world.json", "backbones/llm/config.json", "data/images/train_000001.png", "data/scenes.jsonl"] {
            write(&world, name, "{}");
        }
        write(&world, "data/images/.writing-aB3dE6", b"\x89PNG\r\n");
        write(&world, "backbones/vision/.basic-17-aB3dE6", b"\x10\0\0\0\0\0\0\0{");
        write(&world, ".basic-17-aB3dE6", "{\"world\"");
    };
    make();
    Contents::World.remove_unmarked(&world).unwrap();
    assert!(!world.exists());
    for (name, bytes) in [
        ("thesis.tex", "mine"),
        ("data/notes.md", "mine"),
        ("data/images/cat.png", "mine"),
        ("data/images/.writing-letter", "mine"),
        ("data/.writing-letters", "mine"),
        ("backbones/llm/.tmpAbCdEf", "mine"),
        (".basic-17-cD3dE6", "{\"mine\": 1}"),
    ] {
        make();
        write(&world, name, bytes);
        let before = names(&world);
        let error = Contents::World.remove_unmarked(&world).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        assert_eq!(names(&world), before, "nothing is removed");
        fs::remove_dir_all(&world).unwrap();
    }
    write(dir.path(), "world", "a file");
    assert!(Contents::World.remove_unmarked(&world).unwrap_err().to_string().contains("world"));
}

#[test]
fn temporary_files_and_locks_in_a_run_are_its_own_by_what_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, ours) in [
        (".tmpAbCdEf", "{\n  \"status\": \"run", true),
        (".tmpAbCdEf", "a letter", false),
        (".basic-17-aB3dE6", "{\"step\":1", true),
        (".basic-17-aB3dE6", "{\"port\":1", false),
        (".lock", "", true),
        (".lock", "pid 17", false),
    ] {
        write(dir.path(), "run.json", "{}");
        write(dir.path(), name, bytes);
        assert_eq!(Contents::Run.check(dir.path()).is_ok(), ours, "{name} {bytes}");
        // The same without run.json.
        fs::remove_file(dir.path().join("run.json")).unwrap();
        assert_eq!(Contents::Run.check(dir.path()).is_ok(), ours, "{name} {bytes}");
        Contents::Run.clear(dir.path()).unwrap();
        assert_eq!(dir.path().join(name).exists(), !ours);
        fs::create_dir_all(dir.path()).unwrap();
        let _ = fs::remove_file(dir.path().join(name));
    }
}

#[test]
fn of_a_folder_in_a_run_only_the_runs_own_goes() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["failed-checkpoints/step-00000002/state.json", "failed-checkpoints/step-00000004/notes.md", "run.json"]
    {
        write(dir.path(), name, "{}");
    }
    Contents::Run.clear_folder(dir.path(), "failed-checkpoints").unwrap();
    let left = ["failed-checkpoints", "failed-checkpoints/step-00000004", "failed-checkpoints/step-00000004/notes.md"];
    assert_eq!(names(dir.path()), [&left[..], &["run.json"]].concat());
    #[cfg(unix)]
    {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("failed-checkpoints", &link).unwrap();
        write(&link, "config.json", "{}");
        Contents::Run.clear(&link).unwrap();
        assert!(link.is_symlink() && !link.join("config.json").exists(), "a link stays one");
    }
}

#[test]
fn the_pieces_of_an_optimizers_state_belong_to_a_part_and_similar_names_do_not() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["state.json", "trained.safetensors", "optimizer-00001-of-00002.safetensors"] {
        write(dir.path(), name, "{}");
    }
    Contents::Part.check(dir.path()).unwrap();
    for name in ["optimizer-1-of-2.safetensors", "optimizer-00001.safetensors", "optimizer-00001-of-00002.bin"] {
        write(dir.path(), name, "{}");
        assert!(Contents::Part.check(dir.path()).unwrap_err().to_string().contains(name));
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert!(Contents::Checkpoint.check(dir.path()).is_err(), "they belong to no checkpoint");
}

#[test]
fn a_demos_runs_go_with_their_records_states_and_results_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let make = || {
        for name in [
            "config.json",
            "model.safetensors",
            "run.json",
            "metrics.jsonl",
            "recipe.toml",
            "result.json",
            "checkpoints/step-00000002/model/config.json",
        ] {
            write(&runs, &format!("few-llava-seed0/pretrain/{name}"), "{}");
        }
        // What a demo was writing when it was killed: a result, a recipe, a lock.
        write(&runs, "few-basic-seed0/finetune/.basic-17-aB3dE6", "{\n  \"hash\": \"0\"");
        write(&runs, "few-basic-seed0/finetune/.basic-18-aB3dE6", "stage = \"finetune\"");
        write(&runs, "few-basic-seed0/finetune/.lock", "");
    };
    make();
    Contents::DemoRuns.remove(&runs).unwrap();
    assert!(!runs.exists());
    for name in
        ["notes.md", "mine/pretrain/config.json", "few-llava-seed0/pretrain/notes.md", "few-llava-seed0/result.json"]
    {
        make();
        write(&runs, name, "mine");
        let before = names(&runs);
        assert!(Contents::DemoRuns.remove(&runs).is_err(), "{name}");
        assert_eq!(names(&runs), before, "nothing is removed");
        fs::remove_dir_all(&runs).unwrap();
    }
}
