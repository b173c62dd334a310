{{/* Names and labels. */}}
{{- define "baton.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* KubeRay allows a RayService 47 characters; names of our own objects add up to 20. */}}
{{- define "baton.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "baton.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What selectors use: never changes in the life of a release. */}}
{{- define "baton.selectorLabels" -}}
app.kubernetes.io/name: {{ include "baton.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "baton.labels" -}}
{{ include "baton.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "baton.headServiceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ include "baton.fullname" . }}-head{{ else }}{{ .Values.serviceAccount.headName }}{{ end }}
{{- end }}

{{- define "baton.workerServiceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ include "baton.fullname" . }}-worker{{ else }}{{ .Values.serviceAccount.workerName }}{{ end }}
{{- end }}

{{/* image: (list root "gateway" or "worker") */}}
{{- define "baton.image" -}}
{{- $root := index . 0 }}
{{- $image := get $root.Values.images (index . 1) }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{- define "baton.scheme" -}}
{{- if .Values.secrets.tls.existing }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{/* Where the model is in the pods; empty for the one that ships. */}}
{{- define "baton.modelPath" -}}
{{- if ne .Values.model.source "image" }}/models/{{ .Values.model.name }}{{ end }}
{{- end }}

{{/*
The numbers of one pool that follow from Baton's configuration, as YAML:
(list root "prefill" or "decode") -> min, max, ranks, hosts, cpus (of a pod), gpus (of a pod).
*/}}
{{- define "baton.pool" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- $config := get $root.Values.config $role | default dict }}
{{- $common := $root.Values.config.engine | default dict }}
{{- $engine := $config.engine | default dict }}
{{- $ranks := dig "tensor_parallel_size" (dig "tensor_parallel_size" 1 $common) $engine | int }}
{{- $hosts := dig "num_hosts" 1 $config | int }}
{{- $min := dig "min_replicas" 1 $config | int }}
{{- $max := $min }}
{{- if not (kindIs "invalid" (dig "max_replicas" nil $config)) }}
{{- $max = $config.max_replicas | int }}
{{- end }}
{{- $perHost := divf $ranks $hosts }}
{{- $gpus := mulf $perHost (dig "num_gpus" 0 $config | float64) }}
{{- $cpus := mulf $perHost (dig "num_cpus" 1 $config | float64) }}
{{- if ne $gpus (floor $gpus) }}
{{- fail (printf "config.%s.num_gpus makes %v GPUs of a pod, but Kubernetes gives whole ones: choose 0 or 1" $role $gpus) }}
{{- end }}
{{- if ne $perHost (floor $perHost) }}
{{- fail (printf "config.%s: tensor_parallel_size %d cannot be shared by num_hosts %d: it must be a multiple" $role $ranks $hosts) }}
{{- end }}
min: {{ $min }}
max: {{ $max }}
hosts: {{ $hosts }}
cpus: {{ max 1 (ceil $cpus) | int }}
gpus: {{ $gpus | int }}
{{- end }}

{{/* Baton's configuration as `args` of its application: what was given, and what follows from Kubernetes. */}}
{{- define "baton.args" -}}
{{- $config := deepCopy .Values.config }}
{{- $ours := dict "ray" (dict "address" "auto") "gateway_resources" (dict "baton-gateway" 1) "gateway_port_step" 0 }}
{{- $gateway := dict "host" "0.0.0.0" "http_port" 8000 "grpc_port" (ternary 8001 nil .Values.gateway.grpc) }}
{{- with .Values.secrets.tls.existing }}
{{- $_ := set $gateway "tls_cert_path" "/etc/baton/tls/tls.crt" }}
{{- $_ := set $gateway "tls_key_path" "/etc/baton/tls/tls.key" }}
{{- end }}
{{- with .Values.secrets.tenants.existing }}
{{- $_ := set $gateway "tenants_file" "/etc/baton/tenants/tenants.yaml" }}
{{- end }}
{{- $_ := set $ours "gateway" $gateway }}
{{- with .Values.secrets.kv.existing }}
{{- $_ := set $ours "secret_file" "/etc/baton/kv/secret" }}
{{- end }}
{{- if .Values.lmcache.enabled }}
{{- $_ := set $ours "lmcache" (dict "address" "tcp://127.0.0.1:5555") }}
{{- end }}
{{- if include "baton.modelPath" . }}
{{- $_ := set $ours "model" (include "baton.modelPath" .) }}
{{- $_ := set $ours "model_name" .Values.model.name }}
{{- end }}
{{- range $role := list "prefill" "decode" }}
{{- $given := get $config $role | default dict }}
{{- $pool := dict "resources" (dict (printf "baton-%s" $role) 0.001) "num_gpus" (dig "num_gpus" 0 $given) }}
{{- /* A pool's own section of tiers replaces the common one: what is added here goes to a copy of that. */}}
{{- $tiers := dict }}
{{- if (get $.Values $role).kvDisk.size }}{{ $_ := set $tiers "disk_path" "/kv" }}{{ end }}
{{- if $.Values.lmcache.enabled }}{{ $_ := set $tiers "lmcache" "auto" }}{{ end }}
{{- if $tiers }}
{{- $common := dig "engine" "kv_tiers" dict $config }}
{{- $own := dig "engine" "kv_tiers" $common $given }}
{{- if not (dig "cpu_gib" 0 $own) }}
{{- fail (printf "config.%s.engine.kv_tiers.cpu_gib is not set: blocks reach disks and LMCache through host memory, so say how much of it they get" $role) }}
{{- end }}
{{- $_ := set $pool "engine" (dict "kv_tiers" (merge $tiers (deepCopy $own))) }}
{{- end }}
{{- $_ := set $ours $role $pool }}
{{- end }}
{{- toYaml (mustMergeOverwrite $config $ours) }}
{{- end }}

{{- define "baton.serveConfig" -}}
proxy_location: Disabled
applications:
  - name: baton
    import_path: baton.cluster.app:build
    route_prefix: null
    args:
      {{- include "baton.args" . | nindent 6 }}
{{- end }}

{{/* Refuses what no schema can. */}}
{{- define "baton.validate" -}}
{{- $values := .Values }}
{{- if and (ne $values.model.source "image") (not $values.model.name) }}
{{- fail "model.name is empty: say what clients shall call the model" }}
{{- end }}
{{- if and (eq $values.model.source "claim") (not $values.model.claim.name) }}
{{- fail "model.claim.name is empty: name the PersistentVolumeClaim that holds the model" }}
{{- end }}
{{- if and (eq $values.model.source "hostPath") (not $values.model.hostPath) }}
{{- fail "model.hostPath is empty: name the model's folder on the nodes" }}
{{- end }}
{{- if and (eq $values.model.source "fetch") (not $values.model.fetch.from) }}
{{- fail "model.fetch.from is empty: give hf://ORG/NAME or s3://BUCKET/PREFIX" }}
{{- end }}
{{- if and (eq $values.adapters.source "claim") (not $values.adapters.claim.name) }}
{{- fail "adapters.claim.name is empty: name the PersistentVolumeClaim that holds the adapters" }}
{{- end }}
{{- if and (eq $values.adapters.source "hostPath") (not $values.adapters.hostPath) }}
{{- fail "adapters.hostPath is empty: name the adapters' folder on the nodes" }}
{{- end }}
{{- if and $values.lmcache.enabled $values.config.lmcache }}
{{- fail "config.lmcache and lmcache.enabled: the chart says where its own servers are; leave one of the two out" }}
{{- end }}
{{- if and $values.gcsFaultTolerance.enabled (not $values.gcsFaultTolerance.redisAddress) }}
{{- fail "gcsFaultTolerance.redisAddress is empty: give Redis' host:port" }}
{{- end }}
{{- if eq $values.upgrade.type "NewClusterWithIncrementalUpgrade" }}
{{- if not $values.upgrade.gatewayClassName }}
{{- fail "upgrade.gatewayClassName is empty: NewClusterWithIncrementalUpgrade moves traffic through a Gateway of that class" }}
{{- end }}
{{- if not $values.autoscaler.enabled }}
{{- fail "autoscaler.enabled is false: NewClusterWithIncrementalUpgrade needs it" }}
{{- end }}
{{- if gt (int $values.upgrade.stepSizePercent) (int $values.upgrade.maxSurgePercent) }}
{{- fail "upgrade.stepSizePercent must not exceed upgrade.maxSurgePercent" }}
{{- end }}
{{- end }}
{{- if not $values.serviceAccount.create }}
{{- if not (and $values.serviceAccount.headName $values.serviceAccount.workerName) }}
{{- fail "serviceAccount.create is false: give serviceAccount.headName and serviceAccount.workerName" }}
{{- end }}
{{- end }}
{{- if and $values.gateway.ingress.enabled (not $values.gateway.ingress.host) }}
{{- fail "gateway.ingress.host is empty" }}
{{- end }}
{{- if and $values.gateway.route.enabled (not $values.gateway.route.parentRefs) }}
{{- fail "gateway.route.parentRefs is empty: name the Gateway that the route belongs to" }}
{{- end }}
{{- if and $values.networkPolicy.restrictEgress $values.autoscaler.enabled (not $values.networkPolicy.apiServer.to) }}
{{- fail "networkPolicy.apiServer.to is empty: with restrictEgress the autoscaler could not reach Kubernetes' API" }}
{{- end }}
{{- $drain := dig "gateway" "drain_grace_s" 30.0 $values.config | float64 }}
{{- include "baton.checkGrace" (list "gateway" $values.gateway.terminationGracePeriodSeconds "config.gateway.drain_grace_s" $drain) }}
{{- range $role := list "prefill" "decode" }}
{{- $pool := fromYaml (include "baton.pool" (list $ $role)) }}
{{- if lt (int $pool.max) (int $pool.min) }}
{{- fail (printf "config.%s.max_replicas is %d, but must be at least min_replicas (%d)" $role (int $pool.max) (int $pool.min)) }}
{{- end }}
{{- if and (not $values.autoscaler.enabled) (gt (int $pool.max) (int $pool.min)) }}
{{- fail (printf "config.%s.max_replicas is above min_replicas, but autoscaler.enabled is false: no nodes would come" $role) }}
{{- end }}
{{- $poolDrain := dig $role "drain_s" 30.0 $values.config | float64 }}
{{- include "baton.checkGrace" (list $role (get $values $role).terminationGracePeriodSeconds (printf "config.%s.drain_s" $role) $poolDrain) }}
{{- end }}
{{- end }}

{{/* Serve ends a replica CLOSING (10 s) and its own drain before the node's deadline, which is 15 s before the pod's. */}}
{{- define "baton.checkGrace" -}}
{{- $grace := index . 1 | float64 }}
{{- $needed := addf (index . 3) 30 }}
{{- if lt $grace $needed }}
{{- fail (printf "%s.terminationGracePeriodSeconds is %v, but must be at least %v: %s (%v) and 30 s to close" (index . 0) $grace $needed (index . 2) (index . 3)) }}
{{- end }}
{{- end }}
