//! What the environment says about the hub.

use super::{Hub, Network};
use crate::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fmt, fs};

/// What private repositories are opened with; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// # Errors
    /// If it cannot be a token; `origin` is where it stands.
    pub fn new(text: &str, origin: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Setting {
                name: origin.to_owned(),
                what: "is not a token: expected letters and digits".to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Hub {
    /// The hub that the environment names, as other tools read it: `HF_ENDPOINT`, `HF_HUB_CACHE` or else `HF_HOME/hub`
    /// (`HF_HOME` is `~/.cache/huggingface` if it is not set), `HF_TOKEN` or else the file `HF_TOKEN_PATH`
    /// (`HF_HOME/token`), `HF_HUB_OFFLINE`, and `HF_HUB_DOWNLOAD_TIMEOUT` in seconds (10).
    ///
    /// # Errors
    /// If one of them makes no sense, or there is no place for a cache.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let folder = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let wrong = |name: &str, what: String| Error::Setting {
            name: name.to_owned(),
            what,
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let address = endpoint
            .strip_prefix("https://")
            .or(endpoint.strip_prefix("http://"));
        if address.is_none_or(str::is_empty)
            || !endpoint.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let what =
                format!("is `{endpoint}`; expected an address such as https://huggingface.co");
            return Err(wrong("HF_ENDPOINT", what));
        }
        let home = folder("HF_HOME").or_else(|| {
            let caches =
                folder("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")))?;
            Some(caches.join("huggingface"))
        });
        let cache = folder("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            wrong(
                "HF_HOME",
                "is not set, and there is no home folder; set it to a folder for the hub's files"
                    .into(),
            )
        })?;
        let token = match set("HF_TOKEN") {
            Some(token) => Some(Token::new(&token, "HF_TOKEN")?),
            None => {
                let path = folder("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
                let text = path.as_ref().and_then(|path| fs::read_to_string(path).ok());
                match (path, text) {
                    (Some(path), Some(text)) if !text.trim().is_empty() => {
                        Some(Token::new(&text, &path.display().to_string())?)
                    }
                    _ => None,
                }
            }
        };
        let offline = set("HF_HUB_OFFLINE").is_some_and(|word| {
            matches!(
                word.to_ascii_uppercase().as_str(),
                "1" | "ON" | "YES" | "TRUE"
            )
        });
        let timeout = match set("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => Duration::from_secs(10),
            Some(text) => {
                let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0);
                seconds
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                    .ok_or_else(|| {
                        wrong(
                            "HF_HUB_DOWNLOAD_TIMEOUT",
                            format!("is `{text}`; expected seconds"),
                        )
                    })?
            }
        };
        Ok(Self {
            endpoint,
            cache,
            token,
            network: if offline {
                Network::Offline
            } else {
                Network::Online
            },
            timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::new(" hf_secret\n", "HF_TOKEN").unwrap();
        assert_eq!(
            (token.secret(), format!("{token:?}").as_str()),
            ("hf_secret", "Token(..)")
        );
        let message = Token::new("hf secret", "HF_TOKEN").unwrap_err().to_string();
        assert_eq!(
            message,
            "HF_TOKEN is not a token: expected letters and digits"
        );
    }
}
