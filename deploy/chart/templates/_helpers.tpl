{{- define "clustercert.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "clustercert.fullname" -}}
{{- $name := include "clustercert.name" . }}
{{- if .Values.fullnameOverride }}
{{- $name = .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- $name = .Release.Name }}
{{- else }}
{{- $name = printf "%s-%s" .Release.Name $name }}
{{- end }}
{{- $name = $name | trunc 50 | trimSuffix "-" }}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) }}
{{- fail (printf "A Service can't have the name %s. Set fullnameOverride to lower-case letters, digits and hyphens, with a letter first." $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- /* A quantity of Kubernetes as a number. */ -}}
{{- define "clustercert.number" -}}
{{- $text := toString . }}
{{- $unit := regexFind "([KMGTPE]i|[numkMGTPE])$" $text }}
{{- $small := dict "n" 1e-9 "u" 1e-6 "m" 1e-3 "" 1 }}
{{- $decimal := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 }}
{{- $binary := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 }}
{{- mulf (trimSuffix $unit $text | float64) (get (merge $small $decimal $binary) $unit) }}
{{- end }}

{{- define "clustercert.resources" -}}
{{- $limits := .resources.limits | default dict }}
{{- range $name, $request := .resources.requests }}
{{- with get $limits $name }}
{{- if gt (include "clustercert.number" $request | float64) (include "clustercert.number" . | float64) }}
{{- fail (printf "%s.resources: the request of %s (%v) is larger than its limit (%v). Raise the limit, or lower the request." $.role $name $request .) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml .resources }}
{{- end }}

{{- define "clustercert.selector" -}}
app.kubernetes.io/name: {{ include "clustercert.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "clustercert.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "clustercert.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* With SQLite, one pod has both containers. */ -}}
{{- define "clustercert.component" -}}
{{- if .root.Values.database.existingSecret }}{{ .role }}{{ else }}all{{ end }}
{{- end }}

{{- define "clustercert.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "clustercert.tlsSecret" -}}
{{- if and .Values.tls.existingSecret .Values.tls.certManager.issuerRef }}
{{- /* cert-manager would replace the certificate in the Secret. */}}
{{- fail "Both tls.existingSecret and tls.certManager.issuerRef are set. Remove one of them." }}
{{- end }}
{{- if .Values.tls.existingSecret }}{{ .Values.tls.existingSecret }}
{{- else if .Values.tls.certManager.issuerRef }}{{ include "clustercert.fullname" . }}-tls
{{- end }}
{{- end }}

{{- define "clustercert.dnsNames" -}}
{{- $name := include "clustercert.fullname" . }}
{{- range list $name (printf "%s-webhook" $name) }}
- {{ . }}
- {{ . }}.{{ $.Release.Namespace }}
- {{ . }}.{{ $.Release.Namespace }}.svc
{{- end }}
{{- end }}

{{- define "clustercert.settings" -}}
{{- if not (kindIs "map" .Values.config) }}{{ fail "config is null. Leave it out, or write settings below it." }}{{ end }}
{{- $settings := deepCopy .Values.config }}
{{- $name := include "clustercert.fullname" . }}
{{- $_ := set $settings "data_dir" "/var/lib/clustercert/data" }}
{{- if or .Values.kek.existingSecret .Values.kek.csi }}
{{- $_ := set $settings "kek_file" (printf "/etc/clustercert/kek/%s" .Values.kek.key) }}
{{- else if not $settings.kek_transit }}
{{- fail "There is no key-encryption key. Set kek.existingSecret, kek.csi or config.kek_transit." }}
{{- end }}
{{- $tls := dict }}
{{- if include "clustercert.tlsSecret" . }}
{{- $tls = dict "tls_certificate" "/etc/clustercert/tls/tls.crt" "tls_key" "/etc/clustercert/tls/tls.key" }}
{{- end }}
{{- $server := $settings.server | default dict }}
{{- $webhook := $settings.webhook | default dict }}
{{- if and .Values.database.existingSecret (not $tls) (not (and $server.plain_http $webhook.plain_http)) }}
{{- fail "With a database, the service creates no certificate of its own. Set tls.existingSecret or tls.certManager.issuerRef." }}
{{- end }}
{{- $service := .Values.api.service }}
{{- $scheme := ternary "http" "https" (default false $server.plain_http) }}
{{- $url := printf "%s://%s.%s.svc:%v" $scheme $name .Release.Namespace $service.port }}
{{- range list .Values.gateway .Values.ingress }}
{{- if .enabled }}{{ $url = printf "https://%s" (first .hostnames) }}{{ end }}
{{- end }}
{{- $_ := set $settings "server" (merge (dict "port" 8443) $server $tls (dict "host" "0.0.0.0" "public_url" $url)) }}
{{- $service = .Values.webhook.service }}
{{- $scheme = ternary "http" "https" (default false $webhook.plain_http) }}
{{- $url = printf "%s://%s-webhook.%s.svc:%v" $scheme $name .Release.Namespace $service.port }}
{{- $_ := set $settings "webhook" (merge (dict "port" 8444) $webhook (dict "host" "0.0.0.0" "public_url" $url)) }}
{{- if .Values.policyConfigMap }}
{{- if and $settings.policy (ne (toJson $settings.policy) (toJson (dict "max_lifetime" "24h"))) }}
{{- fail "The policy is in config.policy and in policyConfigMap. Remove one of them." }}
{{- end }}
{{- $_ := set $settings "policy" (dict "file" "/etc/clustercert/policy/policy.toml") }}
{{- end }}
{{- $settings | toJson }}
{{- end }}

{{- /* What needs a restart: all settings but the policy and the issuers. */ -}}
{{- define "clustercert.checksum" -}}
{{- $settings := include "clustercert.settings" . | fromJson }}
{{- $_ := unset $settings "policy" }}
{{- $_ := set $settings "identity" (omit ($settings.identity | default dict) "issuers") }}
{{- $settings | toJson | sha256sum }}
{{- end }}

{{- define "clustercert.podMetadata" -}}
labels:
  {{- include "clustercert.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ include "clustercert.component" . }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/settings: {{ include "clustercert.checksum" .root }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "clustercert.podSpec" -}}
{{- $values := .root.Values }}
{{- range $file, $_ := $values.privateFiles }}
{{- if hasKey $values.files $file }}
{{- fail (printf "The name %s is in files and in privateFiles. Rename one of them." $file) }}
{{- end }}
{{- end }}
{{- $name := include "clustercert.fullname" .root }}
serviceAccountName: {{ $name }}
automountServiceAccountToken: {{ $values.serviceAccount.automountToken }}
enableServiceLinks: false
# 5 s until no new connections arrive, 10 s for kept connections, then 35 s for requests in progress.
terminationGracePeriodSeconds: 60
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if $values.database.existingSecret }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "clustercert.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.role }}
  {{- end }}
{{- end }}
initContainers:
  # Several at once are safe.
  - name: db-upgrade
    {{- include "clustercert.container" (dict "root" .root "keys" (eq .role "api")) | nindent 4 }}
    args: [db, upgrade, --wait, 10m{{ if eq .role "webhook" }}, --schema-only{{ end }}]
    resources:
      {{- include "clustercert.resources" (dict "role" .role "resources" (get $values .role).resources) | nindent 6 }}
containers:
  {{- range ternary (list .role) (list "api" "webhook") (not (empty $values.database.existingSecret)) }}
  {{- $port := ternary 8443 8444 (eq . "api") }}
  {{- $settings := include "clustercert.settings" $.root | fromJson }}
  {{- $table := ternary $settings.server $settings.webhook (eq . "api") }}
  - name: {{ . }}
    {{- include "clustercert.container" (dict "root" $.root "keys" (eq . "api")) | nindent 4 }}
    args: [serve, --role, {{ . }}, --wait, 10m, --drain]
    ports:
      - name: {{ . }}
        containerPort: {{ $port }}
    lifecycle:
      preStop:
        sleep: {seconds: 5}
    startupProbe:
      {{- include "clustercert.probe" (dict "table" $table "path" "/healthz" "port" .) | nindent 6 }}
      periodSeconds: 2
      # 11 minutes, longer than --wait.
      failureThreshold: 330
    livenessProbe:
      {{- include "clustercert.probe" (dict "table" $table "path" "/healthz" "port" .) | nindent 6 }}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    readinessProbe:
      {{- include "clustercert.probe" (dict "table" $table "path" "/readyz" "port" .) | nindent 6 }}
      periodSeconds: 5
      timeoutSeconds: 5
    resources:
      {{- include "clustercert.resources" (dict "role" . "resources" (get $values .).resources) | nindent 6 }}
  {{- end }}
volumes:
  - name: settings
    configMap: {name: {{ $name }}-settings}
  - name: tmp
    emptyDir: {}
  {{- if $values.database.existingSecret }}
  - name: data
    emptyDir: {}
  {{- end }}
  {{- with $values.policyConfigMap }}
  - name: policy
    configMap: {name: {{ . }}}
  {{- end }}
  {{- with include "clustercert.tlsSecret" .root }}
  - name: tls
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
  {{- with ternary $values.kek dict (eq .role "api") }}
  {{- if .csi }}
  - name: kek
    csi:
      {{- toYaml (merge .csi (dict "readOnly" true)) | nindent 6 }}
  {{- else if .existingSecret }}
  - name: kek
    secret: {secretName: {{ .existingSecret }}, defaultMode: 0440}
  {{- end }}
  {{- end }}
  {{- range $kind, $files := dict "file" $values.files "private" (ternary $values.privateFiles dict (eq .role "api")) }}
  {{- range $file, $volume := $files }}
  - name: {{ $kind }}-{{ $file }}
    {{- toYaml $volume | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end }}

{{- /* A container without its arguments. `keys`: whether it may read keys and private files. */ -}}
{{- define "clustercert.container" -}}
{{- $values := .root.Values -}}
image: {{ include "clustercert.image" .root }}
imagePullPolicy: {{ $values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - name: CLUSTERCERT_CONFIG
    value: /etc/clustercert/settings/clustercert.toml
  {{- with $values.database }}
  {{- if .existingSecret }}
  - name: CLUSTERCERT_DATABASE_URL
    valueFrom:
      secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}
  {{- end }}
  {{- end }}
  {{- with $values.metrics }}
  {{- if .existingSecret }}
  - name: CLUSTERCERT_METRICS__TOKEN
    valueFrom:
      secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}
  {{- end }}
  {{- end }}
  {{- with $values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - {name: settings, mountPath: /etc/clustercert/settings, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  - {name: data, mountPath: /var/lib/clustercert}
  {{- if $values.policyConfigMap }}
  - {name: policy, mountPath: /etc/clustercert/policy, readOnly: true}
  {{- end }}
  {{- if include "clustercert.tlsSecret" .root }}
  - {name: tls, mountPath: /etc/clustercert/tls, readOnly: true}
  {{- end }}
  {{- range $file, $_ := $values.files }}
  - {name: file-{{ $file }}, mountPath: /etc/clustercert/files/{{ $file }}, readOnly: true}
  {{- end }}
  {{- if .keys }}
  {{- if or $values.kek.csi $values.kek.existingSecret }}
  - {name: kek, mountPath: /etc/clustercert/kek, readOnly: true}
  {{- end }}
  {{- range $file, $_ := $values.privateFiles }}
  - {name: private-{{ $file }}, mountPath: /etc/clustercert/files/{{ $file }}, readOnly: true}
  {{- end }}
  {{- end }}
{{- end }}

{{- /* Clients of the webhook may need a certificate, which the kubelet does not have. */ -}}
{{- define "clustercert.probe" -}}
{{- if .table.client_ca -}}
tcpSocket: {port: {{ .port }}}
{{- else -}}
httpGet: {path: {{ .path }}, port: {{ .port }}, scheme: {{ ternary "HTTP" "HTTPS" (default false .table.plain_http) }}}
{{- end }}
{{- end }}
