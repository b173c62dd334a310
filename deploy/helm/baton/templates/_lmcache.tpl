{{/*
The LMCache server beside a worker: it starts before the worker and ends after it, and shares its /dev/shm. (list root worker)
*/}}
{{- define "baton.lmcache" -}}
{{- $root := index . 0 }}
{{- $cache := $root.Values.lmcache }}
{{- if and $cache.enabled (index . 1) }}
{{- /* Its own HTTP port would be 8080, which is that of Ray's metrics. */}}
{{- $command := list "lmcache" "server" "--host" "127.0.0.1" "--port" "5555" "--http-host" "127.0.0.1" "--http-port" "5556" "--instance-id" "$(POD)" }}
{{- $command = concat $command (list "--l1-size-gb" (toString $cache.memoryGib) "--shm-name" "baton" "--no-l1-use-lazy") }}
{{- $command = concat $command (list "--supported-transfer-mode" "engine_driven" "--null-block-id" "-1" "--max-workers" "4") }}
{{- $command = concat $command (list "--eviction-policy" "LRU" "--eviction-trigger-watermark" "0.6" "--l2-prefetch-policy" "retain") }}
{{- $command = concat $command (list "--l1-write-ttl-seconds" "60" "--l1-read-ttl-seconds" "60") }}
{{- range $cache.storage }}{{ $command = concat $command (list "--l2-adapter" (toJson .)) }}{{ end }}
{{- $command = concat $command (list "--server-module" `{"module_path": "baton.kvtransfer.lmcache.module"}`) }}
- name: lmcache
  # One that goes on beside the worker.
  restartPolicy: Always
  image: {{ include "baton.image" (list $root "worker") }}
  imagePullPolicy: {{ $root.Values.images.pullPolicy }}
  securityContext:
    {{- toYaml $root.Values.containerSecurityContext | nindent 4 }}
  command: {{ toJson $command }}
  env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: HOME, value: /tmp}
    - {name: LMCACHE_TRACK_USAGE, value: "false"}
    - {name: DO_NOT_TRACK, value: "1"}
    - {name: LMCACHE_LOG_LEVEL, value: WARNING}
  # It listens within the pod only.
  startupProbe:
    exec: {command: [python, -c, "import socket; socket.create_connection(('127.0.0.1', 5555), 2)"]}
    periodSeconds: 2
    timeoutSeconds: 5
    failureThreshold: 60
  resources:
    requests: {cpu: {{ $cache.cpu | quote }}, memory: {{ $cache.memory }}}
    limits: {memory: {{ $cache.memory }}}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
    {{- with $cache.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end }}
