{{- define "viproute.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "viproute.labels" -}}
app.kubernetes.io/name: viproute
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
{{- end }}

{{/* The runtime's networks, as the node names them: recorded paths are used in the container, too. */}}
{{- define "viproute.confDir" -}}
{{- $presets := dict "k3s" "/var/lib/rancher/k3s/agent/etc/cni/net.d" "rke2" "/etc/cni/net.d" "openshift" "/etc/kubernetes/cni/net.d" }}
{{- .Values.cni.confDir | default (get $presets .Values.cni.preset) | default "/etc/cni/net.d" }}
{{- end }}

{{/* Where the plugin is; `node install` links it where a runtime looks elsewhere, by the runtime's configuration. */}}
{{- define "viproute.binDir" -}}
{{- .Values.cni.binDir | default (get (dict "openshift" "/var/lib/cni/bin") .Values.cni.preset) | default "/opt/cni/bin" }}
{{- end }}

{{/* What all pods of viproute have in common, but for their containers. */}}
{{- define "viproute.pod" -}}
hostNetwork: true
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  seccompProfile: { type: {{ .Values.seccompProfile }} }
{{- end }}

{{/* The same of those that change the node. */}}
{{- define "viproute.nodePod" -}}
{{ include "viproute.pod" . }}
  # The default profiles of containerd and CRI-O deny mounts and /sys/fs/bpf.
  appArmorProfile: { type: {{ .Values.appArmorProfile }} }
  {{- with .Values.seLinuxType }}
  seLinuxOptions: { type: {{ . }} }
  {{- end }}
{{- end }}

{{- define "viproute.container" -}}
image: {{ include "viproute.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "viproute.toml" -}}
backend = {{ .Values.backend | toJson }}
{{- with .Values.allow }}
allow = {{ toJson . }}
{{- end }}
{{- with .Values.announce }}
announce = {{ toJson . }}
{{- end }}
hold = {{ .Values.hold | toJson }}
{{- with .Values.metricsListen }}
metrics_listen = {{ toJson . }}
{{- end }}
log = {{ .Values.log.form | toJson }}
log_level = {{ .Values.log.level | toJson }}
{{- with .Values.extraConfig }}
{{ . | trim }}
{{- end }}
{{- if and (eq .Values.backend "pool") .Values.pools }}
{{- range .Values.pools }}
[[pool]]
name = {{ .name | toJson }}
cidr = {{ .cidr | toJson }}
{{- with .exclude }}
exclude = {{ toJson . }}
{{- end }}
{{- with .cidr6 }}
cidr6 = {{ toJson . }}
{{- end }}
{{- if hasKey . "auto" }}
auto = {{ .auto }}
{{- end }}
{{- with .namespaces }}
namespaces = {{ toJson . }}
{{- end }}
{{- with .labels }}
[pool.labels]
{{- range $name, $value := . }}
{{ $name | toJson }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end }}
{{- else if eq .Values.backend "pool" }}
[pool]
cidr = {{ .Values.pool.cidr | toJson }}
exclude = {{ .Values.pool.exclude | toJson }}
{{- with .Values.pool.cidr6 }}
cidr6 = {{ toJson . }}
{{- end }}
{{- else }}
[dhcp]
{{- with .Values.dhcp.interface }}
interface = {{ toJson . }}
{{- end }}
{{- with .Values.dhcp.servers }}
servers = {{ toJson . }}
{{- end }}
on_lost = {{ .Values.dhcp.onLost | toJson }}
{{- end }}
{{- if .Values.dhcp6.enabled }}
[dhcp6]
{{- end }}
[limits]
vips_per_namespace = {{ int .Values.limits.vipsPerNamespace }}
vips = {{ int .Values.limits.vips }}
{{- if .Values.membership.enabled }}
[membership]
seeds = {{ prepend .Values.membership.seeds (printf "viproute-nodes.%s.svc.%s" .Release.Namespace .Values.membership.clusterDomain) | toJson }}
key_file = "/etc/viproute-key/membership.key"
{{- end }}
{{- if .Values.services.enabled }}
[kubernetes]
enabled = true
class = {{ .Values.services.class | toJson }}
default_class = {{ .Values.services.defaultClass }}
ignore_exclude_label = {{ .Values.services.ignoreExcludeLabel }}
{{- if ne .Values.services.networkPolicy "block" }}
network_policy = {{ .Values.services.networkPolicy | toJson }}
{{- end }}
{{- end }}
{{- range .Values.pins }}
[[pin]]
vip = {{ .vip | toJson }}
address = {{ .address | toJson }}
{{- with .address6 }}
address6 = {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
