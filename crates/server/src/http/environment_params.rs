//! The bodies of environment requests: validated and normalised.
//!
//! Rules of api.md 2.2.

use engine::port::definitions::{EnvironmentConfig, Networking};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{self, Fields, Patch};
use super::metadata::{self, Metadata, MetadataPatch};

const NAME_CHARACTERS_MAX: usize = 256;
const DESCRIPTION_CHARACTERS_MAX: usize = 2_048;
const HOSTS_MAX: usize = 256;

/// A new environment, complete but for id and times.
pub(super) struct CreateEnvironment {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) config: EnvironmentConfig,
    pub(super) metadata: Metadata,
}

impl CreateEnvironment {
    pub(super) fn read(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.required_string("name")?;
        fields::check_length(&name, "name", 1, NAME_CHARACTERS_MAX)?;
        let description = read_description(&mut body)?.apply(None);
        let config = match body.object("config")? {
            None => EnvironmentConfig::Cloud { networking: Networking::Unrestricted },
            Some(config) => ConfigPatch::read(config)?.applied_to_nothing(),
        };
        let metadata = metadata::read(&mut body)?;
        read_scope(&mut body)?;
        body.finish()?;
        Ok(Self { name, description, config, metadata })
    }
}

/// What an update changes.
pub(super) struct UpdateEnvironment {
    pub(super) name: Option<String>,
    pub(super) description: Patch<String>,
    pub(super) config: Option<ConfigPatch>,
    pub(super) metadata: MetadataPatch,
}

impl UpdateEnvironment {
    pub(super) fn read(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.string("name")?;
        if let Some(name) = &name {
            fields::check_length(name, "name", 1, NAME_CHARACTERS_MAX)?;
        }
        let description = read_description(&mut body)?;
        let config = body.object("config")?.map(ConfigPatch::read).transpose()?;
        let metadata = metadata::empty_deletes(metadata::read_patch(&mut body)?);
        read_scope(&mut body)?;
        body.finish()?;
        Ok(Self { name, description, config, metadata })
    }
}

/// A configuration as clients send it: what is left out keeps its value.
#[derive(Clone)]
pub(super) enum ConfigPatch {
    Cloud { networking: Option<NetworkingPatch> },
    SelfHosted,
}

/// The same for the network.
#[derive(Clone)]
pub(super) enum NetworkingPatch {
    Unrestricted,
    Limited {
        allowed_hosts: Option<Vec<String>>,
        allow_mcp_servers: Option<bool>,
        allow_package_managers: Option<bool>,
    },
}

impl ConfigPatch {
    fn read(mut config: Fields) -> Result<Self, ApiError> {
        let patch = match config.required_string("type")?.as_str() {
            "cloud" => {
                let networking = config.object("networking")?.map(NetworkingPatch::read).transpose()?;
                refuse_packages(&mut config)?;
                Self::Cloud { networking }
            }
            "self_hosted" => Self::SelfHosted,
            _ => return Err(ApiError::invalid(format!("{}: expected cloud or self_hosted", config.at("type")))),
        };
        config.finish()?;
        Ok(patch)
    }

    fn applied_to_nothing(self) -> EnvironmentConfig {
        match self {
            Self::Cloud { networking } => EnvironmentConfig::Cloud {
                networking: networking.map_or(Networking::Unrestricted, |patch| patch.apply(&Networking::Unrestricted)),
            },
            Self::SelfHosted => EnvironmentConfig::SelfHosted,
        }
    }

    /// The configuration after the update. Its type never changes.
    pub(super) fn apply(self, current: &EnvironmentConfig) -> Result<EnvironmentConfig, ApiError> {
        match (self, current) {
            (Self::SelfHosted, EnvironmentConfig::SelfHosted) => Ok(EnvironmentConfig::SelfHosted),
            (Self::Cloud { networking: None }, EnvironmentConfig::Cloud { .. }) => Ok(current.clone()),
            (Self::Cloud { networking: Some(patch) }, EnvironmentConfig::Cloud { networking }) => {
                Ok(EnvironmentConfig::Cloud { networking: patch.apply(networking) })
            }
            _ => Err(ApiError::invalid("config.type: cannot change; create another environment")
                .code("invalid_config_type_change")),
        }
    }
}

impl NetworkingPatch {
    fn read(mut networking: Fields) -> Result<Self, ApiError> {
        let patch = match networking.required_string("type")?.as_str() {
            "unrestricted" => Self::Unrestricted,
            "limited" => Self::Limited {
                allowed_hosts: read_hosts(&mut networking)?,
                allow_mcp_servers: networking.boolean("allow_mcp_servers")?,
                allow_package_managers: networking.boolean("allow_package_managers")?,
            },
            _ => return Err(ApiError::invalid(format!("{}: expected unrestricted or limited", networking.at("type")))),
        };
        networking.finish()?;
        Ok(patch)
    }

    fn apply(self, current: &Networking) -> Networking {
        let Self::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } = self else {
            return Networking::Unrestricted;
        };
        let (hosts, mcp_servers, package_managers) = match current {
            Networking::Unrestricted => (Vec::new(), false, false),
            Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => {
                (allowed_hosts.clone(), *allow_mcp_servers, *allow_package_managers)
            }
        };
        Networking::Limited {
            allowed_hosts: allowed_hosts.unwrap_or(hosts),
            allow_mcp_servers: allow_mcp_servers.unwrap_or(mcp_servers),
            allow_package_managers: allow_package_managers.unwrap_or(package_managers),
        }
    }
}

/// Refuses to promise hosts of package managers where the operator has named none.
pub(super) fn check_package_hosts(config: &EnvironmentConfig, package_hosts: &[String]) -> Result<(), ApiError> {
    match config {
        EnvironmentConfig::Cloud { networking: Networking::Limited { allow_package_managers: true, .. } }
            if package_hosts.is_empty() =>
        {
            Err(ApiError::invalid(
                "config.networking.allow_package_managers: this server knows no hosts of package managers; name those \
                 that are needed in allowed_hosts, or have the operator set worker.network.package_hosts",
            ))
        }
        _ => Ok(()),
    }
}

fn read_hosts(networking: &mut Fields) -> Result<Option<Vec<String>>, ApiError> {
    let path = networking.at("allowed_hosts");
    let Some(items) = networking.array("allowed_hosts")? else { return Ok(None) };
    if items.len() > HOSTS_MAX {
        return Err(ApiError::invalid(format!("{path}: at most {HOSTS_MAX} hosts are allowed")));
    }
    let mut hosts = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let host = fields::string(item, &path)?;
        if !is_host_pattern(&host) {
            return Err(ApiError::invalid(format!(
                "{path}: expected a host name such as example.com or *.example.com, without scheme, port or path"
            )));
        }
        hosts.push(host.to_ascii_lowercase());
    }
    Ok(Some(hosts))
}

/// A name of dotted labels, the first of which may be `*`.
pub(crate) fn is_host_pattern(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Nothing is installed into sandboxes yet, so nothing may be asked to be.
fn refuse_packages(config: &mut Fields) -> Result<(), ApiError> {
    let Some(packages) = config.object("packages")? else { return Ok(()) };
    let path = config.at("packages");
    for (manager, list) in packages.into_pairs() {
        let empty = match &list {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::String(kind) => manager == "type" && kind == "packages",
            _ => false,
        };
        if !empty {
            let manager: String = manager.chars().take(64).collect();
            return Err(ApiError::unsupported(
                &fields::join(&path, &manager),
                "packages are not installed yet; remove them and install with bash",
            ));
        }
    }
    Ok(())
}

/// Reads a description: `null` clears, an empty text is kept as such.
fn read_description(body: &mut Fields) -> Result<Patch<String>, ApiError> {
    let patch = body.string_patch("description")?;
    if let Patch::Set(text) = &patch {
        fields::check_length(text, "description", 0, DESCRIPTION_CHARACTERS_MAX)?;
    }
    Ok(patch)
}

fn read_scope(body: &mut Fields) -> Result<(), ApiError> {
    match body.string("scope")?.as_deref() {
        None | Some("organization") => Ok(()),
        Some(_) => Err(ApiError::invalid("scope: expected organization")),
    }
}
