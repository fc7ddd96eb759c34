use super::*;

fn checkpoint(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), r#"{"model_type": "llava"}"#).unwrap();
    fs::write(dir.join("model-00001-of-00002.safetensors"), "old").unwrap();
    dir.into()
}

fn write(target: &Path, contents: Contents) -> Result<(), CheckpointError> {
    let staged = StagedDir::replacing(target, Replaces::new(true, contents, Vec::new()))?;
    staged.write("config.json", br#"{"model_type": "llama"}"#)?;
    staged.commit()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_is_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let out = checkpoint(&dir.path().join("out"));
    write(&out, Contents::Checkpoint).unwrap();
    assert_eq!(names(&out), ["config.json"]);
    assert_eq!(names(dir.path()), ["out"], "nothing is left beside it");
    for foreign in
        ["thesis.tex", "README.md", "pytorch_model.bin", "images/a.png", "model-1-of-2.safetensors", "run.json"]
    {
        let out = checkpoint(&dir.path().join("other"));
        fs::create_dir_all(out.join(foreign).parent().unwrap()).unwrap();
        fs::write(out.join(foreign), "mine").unwrap();
        let error = write(&out, Contents::Checkpoint).unwrap_err().to_string();
        assert!(error.contains(foreign.split('/').next().unwrap()) && error.contains("other"), "{error}");
        assert_eq!(fs::read(out.join(foreign)).unwrap(), b"mine");
        assert_eq!(names(dir.path()), ["other", "out"]);
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn files_of_our_names_that_are_of_another_program_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    for (name, text) in [("config.json", r#"{"port": 8080}"#), ("vocab.json", "{}"), ("data.json", "[]")] {
        fs::write(out.join(name), text).unwrap();
        for contents in [Contents::Checkpoint, Contents::Run, Contents::Export] {
            let error = write(&out, contents).unwrap_err();
            assert!(matches!(error, CheckpointError::Foreign { .. }), "{name}: {error}");
        }
        fs::remove_file(out.join(name)).unwrap();
    }
    fs::write(dir.path().join("file"), "mine").unwrap();
    let error = write(&dir.path().join("file"), Contents::Checkpoint).unwrap_err().to_string();
    assert!(error.contains("is no directory"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_checkpoint_stays_one_and_a_link_in_a_checkpoint_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (checkpoint(&dir.path().join("real")), dir.path().join("link"));
    std::os::unix::fs::symlink("real", &link).unwrap();
    write(&link, Contents::Checkpoint).unwrap();
    assert!(link.is_symlink());
    assert_eq!(names(&real), ["config.json"]);
    fs::write(dir.path().join("blob"), "weights").unwrap();
    std::os::unix::fs::symlink("../blob", real.join("model.safetensors")).unwrap();
    assert!(write(&real, Contents::Checkpoint).unwrap_err().to_string().contains("model.safetensors"));
}

#[test]
fn what_comes_while_it_is_written_is_not_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let out = checkpoint(&dir.path().join("out"));
    let staged = StagedDir::replacing(&out, Replaces::new(true, Contents::Checkpoint, Vec::new())).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    assert!(staged.commit().unwrap_err().to_string().contains("notes.txt"));
    assert_eq!(names(&out), ["config.json", "model-00001-of-00002.safetensors", "notes.txt"]);
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn what_killed_processes_left_goes_and_what_is_in_use_or_somebody_elses_stays() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (folder, file) in [
        (".basic-aaaaaa", "model.safetensors"),
        (".basic-bbbbbb", "model.safetensors"),
        (".basic-backup", "letters.txt"),
        (".basic-settings", "config.json"),
    ] {
        fs::create_dir(at(folder)).unwrap();
        fs::write(at(folder).join(file), "x").unwrap();
    }
    fs::create_dir_all(at(".basic-cccccc/images/00000")).unwrap();
    fs::write(at(".basic-cccccc/images/00000/00000000-0.png"), "x").unwrap();
    let living = File::open(at(".basic-bbbbbb")).unwrap();
    living.try_lock().unwrap();
    write(&at("out"), Contents::Checkpoint).unwrap();
    assert_eq!(names(dir.path()), [".basic-backup", ".basic-bbbbbb", ".basic-settings", "out"]);
}

#[test]
fn what_a_killed_process_had_put_aside_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (out, old) = (dir.path().join("out"), checkpoint(&dir.path().join(".basic-old-out")));
    let keep = Replaces::new(false, Contents::Checkpoint, Vec::new());
    let error = StagedDir::replacing(&out, keep.clone()).unwrap_err();
    assert!(matches!(error, CheckpointError::Exists(_)), "{error}");
    assert_eq!(names(&out), ["config.json", "model-00001-of-00002.safetensors"]);
    // The new one had been renamed already, so the old one is removed.
    checkpoint(&old);
    assert!(StagedDir::replacing(&out, keep).is_err());
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn two_stagings_beside_each_other_leave_each_other_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| StagedDir::new(&dir.path().join(name), false).unwrap());
    a.write("config.json", b"{}").unwrap();
    b.write("config.json", b"{}").unwrap();
    a.commit().unwrap();
    b.commit().unwrap();
    assert_eq!(names(dir.path()), ["a", "b"]);
}
