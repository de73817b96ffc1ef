//! What a build with the feature `cuda` needs where CUDA is not installed: compiler, headers and libraries out of PyPI's
//! packages, laid out as a toolkit, and a library in place of the driver's.

use crate::python::{self, Packages};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// All of one release: a newer `nvidia-nvvm` writes PTX that the assembler of this one refuses.
const PACKAGES: &Packages = &[
    ("nvidia-cuda-nvcc", "13.0.88"),
    ("nvidia-nvvm", "13.0.88"),
    ("nvidia-cuda-crt", "13.0.88"),
    ("nvidia-cuda-cccl", "13.0.85"),
    ("nvidia-cuda-runtime", "13.0.96"),
    ("nvidia-cublas", "13.1.0.3"),
    ("nvidia-curand", "10.4.0.35"),
    ("nvidia-cuda-nvrtc", "13.0.88"),
];

/// Where pip puts them, below its packages.
const UNPACKED: &str = "nvidia/cu13";

/// The compute capability that kernels are compiled for, unless the environment says another.
const CAPABILITY: &str = "90";

/// What the driver says where there is no GPU: `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: u32 = 100;

/// Makes `.cuda` and the file to source before a build.
///
/// # Errors
/// If python3 with pip or a C compiler is missing, or a package does not hold what it should.
pub fn environment(root: &Path) -> Result<()> {
    let folder = root.join(".cuda");
    python::complete(&folder, PACKAGES)?;
    let unpacked = unpacked(&folder)?;
    let toolkit = folder.join("toolkit");
    if toolkit.exists() {
        fs::remove_dir_all(&toolkit)?;
    }
    let libraries = toolkit.join("lib64");
    let stubs = libraries.join("stubs");
    fs::create_dir_all(&stubs)?;
    for part in ["bin", "include", "nvvm"] {
        link(&unpacked.join(part), &toolkit.join(part))?;
    }
    for entry in unpacked.join("lib").read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        link(&entry.path(), &libraries.join(&name))?;
        if let Some(plain) = plain_name(&name) {
            link(&entry.path(), &libraries.join(plain))?;
        }
    }
    driver(&unpacked.join("include"), &stubs)?;
    let script = folder.join("env");
    fs::write(&script, exports(&toolkit))?;
    eprintln!(
        "now: . {} && cargo build --release --features cuda",
        script.display()
    );
    Ok(())
}

fn unpacked(folder: &Path) -> Result<PathBuf> {
    let found = Command::new(python::interpreter(folder))
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
        ])
        .output()?;
    let packages = String::from_utf8(found.stdout)?;
    let unpacked = Path::new(packages.trim()).join(UNPACKED);
    ensure!(
        unpacked.join("bin/nvcc").exists(),
        "{} has no bin/nvcc: remove .cuda and try again",
        unpacked.display()
    );
    Ok(unpacked)
}

/// `libcublas.so` of `libcublas.so.13`, which is the name that a linker looks for.
fn plain_name(name: &str) -> Option<&str> {
    let (plain, version) = name.split_once(".so.")?;
    let is_version = version
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    (is_version && !plain.ends_with(".alt")).then(|| &name[..plain.len() + ".so".len()])
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> Result<()> {
    std::os::unix::fs::symlink(to, at).with_context(|| at.display().to_string())
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> Result<()> {
    bail!("links are made on Unix only; install CUDA instead")
}

/// The driver's library comes with the driver. Linking needs its symbols alone, so that each of its functions is one that
/// says that there is no GPU.
fn driver(include: &Path, stubs: &Path) -> Result<()> {
    let header = include.join("cuda.h");
    let expanded = Command::new("cc")
        .args(["-E", "-P"])
        .arg(&header)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cc")?;
    let functions = functions(&String::from_utf8_lossy(&expanded.stdout));
    ensure!(
        functions.contains("cuInit"),
        "{} declares no cuInit",
        header.display()
    );
    let source = stubs.join("cuda.c");
    let body = functions
        .iter()
        .map(|name| format!("int {name}(void) {{ return {NO_DEVICE}; }}\n"));
    fs::write(&source, body.collect::<String>())?;
    let library = stubs.join("libcuda.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .args([&library, &source])
        .status()?;
    if !status.success() {
        bail!("cc could not make {} ({status})", library.display());
    }
    link(Path::new("libcuda.so"), &stubs.join("libcuda.so.1"))
}

/// The functions that a preprocessed header declares: `CUresult cuName(`, across ends of lines.
fn functions(header: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, result) in header.match_indices("CUresult") {
        let rest = header[at + result.len()..].trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        if name.starts_with("cu") && rest.trim_start().starts_with('(') {
            found.insert(name.to_owned());
        }
    }
    found
}

/// A shell script that tells build scripts and the linker where the toolkit is.
fn exports(toolkit: &Path) -> String {
    let toolkit = toolkit.display();
    let mut text = String::new();
    for name in [
        "CUDA_HOME",
        "CUDA_PATH",
        "CUDA_ROOT",
        "CUDA_TOOLKIT_ROOT_DIR",
    ] {
        text += &format!("export {name}='{toolkit}'\n");
    }
    text += &format!(
        "export CUDA_COMPUTE_CAP=\"${{CUDA_COMPUTE_CAP:-{CAPABILITY}}}\"\n\
         export PATH='{toolkit}/bin':\"$PATH\"\n\
         export LIBRARY_PATH='{toolkit}/lib64:{toolkit}/lib64/stubs'\"${{LIBRARY_PATH:+:$LIBRARY_PATH}}\"\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_what_linkers_look_for() {
        let check = |name: &str, plain: Option<&str>| assert_eq!(plain_name(name), plain, "{name}");
        check("libcublas.so.13", Some("libcublas.so"));
        check("libnvrtc-builtins.so.13.0", Some("libnvrtc-builtins.so"));
        check("libnvrtc.alt.so.13", None);
        check("libcudart_static.a", None);
        check("cmake", None);
    }

    #[test]
    fn functions_of_a_header_are_found_once() {
        let header = "typedef enum cudaError_enum { CUDA_SUCCESS = 0 } CUresult;\n\
                      CUresult cuInit(unsigned int Flags);\nCUresult\n  cuMemAlloc_v2 (CUdeviceptr *p);\n\
                      typedef CUresult (*Callback)(int);\nCUresult cuInit(unsigned int);\nCUresult other(int);";
        let found = functions(header);
        assert_eq!(
            found.iter().collect::<Vec<_>>(),
            ["cuInit", "cuMemAlloc_v2"]
        );
    }

    #[test]
    fn exports_keep_what_is_set() {
        let text = exports(Path::new("/a b/toolkit"));
        assert!(text.contains("export CUDA_HOME='/a b/toolkit'\n"));
        assert!(text.contains("export PATH='/a b/toolkit/bin':\"$PATH\"\n"));
        assert!(text.contains("\"${CUDA_COMPUTE_CAP:-90}\""));
    }
}
