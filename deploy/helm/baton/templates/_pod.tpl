{{/*
The pod template of a Ray group: (list root role), role one of head, gateway, prefill, decode.
*/}}
{{- define "baton.podTemplate" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- $values := $root.Values }}
{{- $pod := get $values $role }}
{{- $worker := has $role (list "prefill" "decode") }}
{{- $pool := dict }}
{{- if $worker }}{{ $pool = fromYaml (include "baton.pool" (list $root $role)) }}{{ end }}
metadata:
  labels:
    {{- include "baton.selectorLabels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
    {{- with (merge (deepCopy $pod.podLabels) $values.commonLabels) }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- if eq $role "head" }}
    {{- if eq $values.upgrade.configChanges "newCluster" }}
    # Another head is another cluster.
    checksum/config: {{ include "baton.args" $root | sha256sum }}
    {{- end }}
    cluster-autoscaler.kubernetes.io/safe-to-evict: {{ ternary "true" "false" $values.gcsFaultTolerance.enabled | quote }}
    {{- end }}
    kubectl.kubernetes.io/default-container: ray
    {{- with $pod.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ ternary (include "baton.headServiceAccount" $root) (include "baton.workerServiceAccount" $root) (eq $role "head") }}
  automountServiceAccountToken: {{ and (eq $role "head") $values.autoscaler.enabled }}
  {{- with $values.images.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $values.autoscaler.enabled }}
  restartPolicy: Never
  {{- end }}
  terminationGracePeriodSeconds: {{ int $pod.terminationGracePeriodSeconds }}
  {{- with $pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  enableServiceLinks: false
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- with (include "baton.placement" (list $root $role $pool) | trim) }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- $first := printf "%s\n%s" (include "baton.fetch" (list $root $worker) | trim) (include "baton.lmcache" (list $root $worker) | trim) }}
  {{- with trim $first }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray
      image: {{ include "baton.image" (list $root (ternary "worker" "gateway" $worker)) }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      securityContext:
        {{- include "baton.containerSecurity" (list $root (and $worker (dig "rdma" false $pod))) | nindent 8 }}
      env:
        - {name: HOME, value: /tmp}
        - {name: RAY_worker_niceness, value: "0"}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        - {name: HF_HUB_OFFLINE, value: "1"}
        {{- if $worker }}
        - {name: TRITON_CACHE_DIR, value: /tmp/triton}
        {{- end }}
        {{- with $pod.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- include "baton.ports" (list $root $role) | trim | nindent 8 }}
      resources:
        {{- include "baton.resources" (list $pod $worker $pool) | trim | nindent 8 }}
      {{- include "baton.probes" (list $root $role) | trim | nindent 6 }}
      lifecycle:
        preStop:
          exec:
            command: [baton, drain, --timeout-s, {{ sub (int $pod.terminationGracePeriodSeconds) 15 | quote }}]
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- if dig "kvDisk" "size" "" $pod }}
        - {name: kv-disk, mountPath: /kv}
        {{- end }}
        {{- with (include "baton.mounts" $root | trim) }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $pod.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: {{ $values.tmpSize }}}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $pod.shm }}}
    {{- with dig "kvDisk" "size" "" $pod }}
    - name: kv-disk
      {{- if $pod.kvDisk.storageClass }}
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            storageClassName: {{ $pod.kvDisk.storageClass }}
            resources: {requests: {storage: {{ . }}}}
      {{- else }}
      emptyDir: {sizeLimit: {{ . }}}
      {{- end }}
    {{- end }}
    {{- with (include "baton.volumes" $root | trim) }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $pod.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "baton.containerSecurity" -}}
{{- $context := deepCopy (index . 0).Values.containerSecurityContext }}
{{- if index . 1 }}
{{- $_ := set $context "capabilities" (merge (dict "add" (list "IPC_LOCK")) (dig "capabilities" dict $context)) }}
{{- end }}
{{- toYaml $context }}
{{- end }}

{{- define "baton.resources" -}}
{{- $pod := index . 0 }}
{{- $pool := index . 2 }}
requests:
  cpu: {{ ternary (toString $pool.cpus) $pod.cpu (index . 1) | quote }}
  memory: {{ $pod.memory }}
  {{- with (include "baton.devices" . | trim) }}
  {{- . | nindent 2 }}
  {{- end }}
limits:
  memory: {{ $pod.memory }}
  {{- with (include "baton.devices" . | trim) }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "baton.devices" -}}
{{- $pod := index . 0 }}
{{- if index . 1 }}
{{- with (index . 2).gpus }}
{{ $pod.gpuResource }}: {{ . | int }}
{{- end }}
{{- range $name, $number := $pod.devices }}
{{ $name }}: {{ $number | int }}
{{- end }}
{{- end }}
{{- end }}

{{- define "baton.placement" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- $pod := get $root.Values $role }}
{{- $gpus := dig "gpus" 0 (index . 2) | int }}
{{- $labels := merge (dict "app.kubernetes.io/component" $role) (fromYaml (include "baton.selectorLabels" $root)) }}
{{- $selector := deepCopy $pod.nodeSelector }}
{{- with dig "gpuProduct" "" $pod }}
{{- if $gpus }}{{ $_ := set $selector "nvidia.com/gpu.product" . }}{{ end }}
{{- end }}
{{- $tolerations := $pod.tolerations }}
{{- if $gpus }}
{{- $tolerations = append $tolerations (dict "key" $pod.gpuResource "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- $spread := $pod.topologySpreadConstraints }}
{{- with dig "spreadOver" "" $pod }}
{{- $spread = append $spread (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" (dict "matchLabels" $labels)) }}
{{- end }}
{{- with $selector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $spread }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels) }}
{{- if $pod.affinity }}
affinity:
  {{- toYaml $pod.affinity | nindent 2 }}
{{- else if eq (dig "antiAffinity" "none" $pod) "hard" }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      {{- toYaml (list $term) | nindent 6 }}
{{- else if eq (dig "antiAffinity" "none" $pod) "soft" }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          {{- toYaml $term | nindent 10 }}
{{- end }}
{{- end }}

{{- define "baton.ports" -}}
{{- $values := (index . 0).Values }}
{{- $role := index . 1 }}
- {name: metrics, containerPort: 8080}
{{- if eq $role "head" }}
- {name: gcs-server, containerPort: 6379}
- {name: dashboard, containerPort: 8265}
- {name: client, containerPort: 10001}
{{- if eq $values.upgrade.type "NewClusterWithIncrementalUpgrade" }}
# KubeRay takes the ports of the services that it moves traffic between from here; nothing listens on the head.
- {name: serve, containerPort: 8000}
{{- if $values.gateway.grpc }}
- {name: serve-grpc, containerPort: 8001}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $role "gateway" }}
- {name: http, containerPort: 8000}
{{- if $values.gateway.grpc }}
- {name: grpc, containerPort: 8001}
{{- end }}
{{- end }}
{{- end }}

{{/*
Ray's agent answers for the node. A gateway's pod is ready when its gateway would serve. With incremental upgrades
KubeRay sends requests to every pod that is ready, so the others never are, as without a Serve proxy they would not be by KubeRay's own probe.
*/}}
{{- define "baton.probes" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- $health := ternary "/api/healthz" "/api/local_raylet_healthz" (eq $role "head") }}
{{- $incremental := eq $root.Values.upgrade.type "NewClusterWithIncrementalUpgrade" }}
startupProbe:
  httpGet: {path: {{ $health }}, port: 52365}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 90
livenessProbe:
  httpGet: {path: {{ $health }}, port: 52365}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 24
readinessProbe:
  {{- if or (eq $role "gateway") (and $incremental (ne $role "head")) }}
  httpGet: {path: /ready, port: 8000, scheme: {{ include "baton.scheme" $root }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
  {{- else }}
  httpGet: {path: {{ $health }}, port: 52365}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
  {{- end }}
{{- end }}

{{- define "baton.mounts" -}}
{{- if ne .Values.model.source "image" }}
- name: model
  mountPath: {{ include "baton.modelPath" . }}
  {{- if and (eq .Values.model.source "claim") .Values.model.claim.subPath }}
  subPath: {{ .Values.model.claim.subPath }}
  {{- end }}
  readOnly: true
{{- end }}
{{- if ne .Values.adapters.source "none" }}
- name: adapters
  mountPath: /adapters
  {{- if and (eq .Values.adapters.source "claim") .Values.adapters.claim.subPath }}
  subPath: {{ .Values.adapters.claim.subPath }}
  {{- end }}
  readOnly: true
{{- end }}
{{- range $name := list "tenants" "kv" "tls" }}
{{- if (get $.Values.secrets $name).existing }}
- {name: {{ $name }}, mountPath: /etc/baton/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "baton.volumes" -}}
{{- $model := .Values.model }}
{{- if eq $model.source "claim" }}
- name: model
  persistentVolumeClaim: {claimName: {{ $model.claim.name }}, readOnly: true}
{{- else if eq $model.source "hostPath" }}
- name: model
  hostPath: {path: {{ $model.hostPath }}, type: Directory}
{{- else if eq $model.source "fetch" }}
- name: model
  emptyDir: {sizeLimit: {{ $model.fetch.sizeLimit }}}
{{- end }}
{{- if eq .Values.adapters.source "claim" }}
- name: adapters
  persistentVolumeClaim: {claimName: {{ .Values.adapters.claim.name }}, readOnly: true}
{{- else if eq .Values.adapters.source "hostPath" }}
- name: adapters
  hostPath: {path: {{ .Values.adapters.hostPath }}, type: Directory}
{{- end }}
{{- with .Values.secrets.tenants }}
{{- if .existing }}
- name: tenants
  secret: {secretName: {{ .existing }}, items: [{key: {{ .key }}, path: tenants.yaml}]}
{{- end }}
{{- end }}
{{- with .Values.secrets.kv }}
{{- if .existing }}
- name: kv
  secret: {secretName: {{ .existing }}, items: [{key: {{ .key }}, path: secret}]}
{{- end }}
{{- end }}
{{- with .Values.secrets.tls.existing }}
- name: tls
  secret: {secretName: {{ . }}}
{{- end }}
{{- end }}

{{/* The init container that brings the model: weights for workers only. (list root worker) */}}
{{- define "baton.fetch" -}}
{{- $root := index . 0 }}
{{- $worker := index . 1 }}
{{- $model := $root.Values.model }}
{{- if eq $model.source "fetch" }}
{{- $files := list "*.json" "*.model" "*.txt" "*.jinja" }}
{{- if $worker }}{{ $files = append $files "*.safetensors" }}{{ end }}
{{- $folder := include "baton.modelPath" $root }}
- name: fetch-model
  {{- if hasPrefix "s3://" $model.fetch.from }}
  image: {{ $model.fetch.s3Image }}
  {{- $command := list "aws" "s3" "sync" (trimSuffix "/" $model.fetch.from) $folder "--no-progress" "--exclude" "*" }}
  {{- range $files }}{{ $command = concat $command (list "--include" .) }}{{ end }}
  {{- with $model.fetch.s3Endpoint }}{{ $command = concat $command (list "--endpoint-url" .) }}{{ end }}
  command: {{ toJson $command }}
  {{- else }}
  image: {{ include "baton.image" (list $root (ternary "worker" "gateway" $worker)) }}
  {{- $parts := splitn "@" 2 (trimPrefix "hf://" $model.fetch.from) }}
  {{- $command := list "hf" "download" $parts._0 "--local-dir" $folder "--quiet" }}
  {{- with $parts._1 }}{{ $command = concat $command (list "--revision" .) }}{{ end }}
  {{- range $files }}{{ $command = concat $command (list "--include" .) }}{{ end }}
  command: {{ toJson $command }}
  {{- end }}
  imagePullPolicy: {{ $root.Values.images.pullPolicy }}
  securityContext:
    {{- toYaml $root.Values.containerSecurityContext | nindent 4 }}
  env:
    - {name: HOME, value: /tmp}
  {{- with $model.fetch.secretName }}
  envFrom:
    - secretRef: {name: {{ . }}}
  {{- end }}
  resources:
    requests: {cpu: "1", memory: 1Gi}
    limits: {memory: 4Gi}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: model, mountPath: {{ $folder }}}
{{- end }}
{{- end }}
