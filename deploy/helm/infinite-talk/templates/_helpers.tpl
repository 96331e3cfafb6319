{{- define "talk.labels" -}}
app.kubernetes.io/name: infinite-talk
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "talk.selector" -}}
app.kubernetes.io/name: infinite-talk
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "talk.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "talk.engines" -}}
{{- $names := list -}}
{{- range $pool := .Values.pools }}{{ $names = append $names $pool.engine }}{{ end -}}
{{ $names | uniq | sortAlpha | join "," }}
{{- end }}

{{- define "talk.redisAddress" -}}
{{- if and .Values.valkey.enabled (not .Values.redis.address) -}}
{{ .Release.Name }}-valkey.{{ .Release.Namespace }}.svc:6379
{{- else -}}
{{ required "redis.address: name the Redis or Valkey server as host:port, or set valkey.enabled for a trial" .Values.redis.address }}
{{- end -}}
{{- end }}

{{- define "talk.s3Endpoint" -}}
{{- if and .Values.minio.enabled (not .Values.s3.endpoint) -}}
http{{ if .Values.minio.tlsSecret }}s{{ end }}://{{ .Release.Name }}-minio.{{ .Release.Namespace }}.svc:9000
{{- else -}}
{{ required "s3.endpoint: give the object store's URL, or set minio.enabled for a trial" .Values.s3.endpoint }}
{{- end -}}
{{- end }}

{{- define "talk.env" -}}
- {name: INFINITETALK_SECRETS_DIR, value: /secrets}
{{- if .Values.tls.caConfigMap }}
- {name: SSL_CERT_FILE, value: /ca/ca.crt}
{{- end }}
- {name: INFINITETALK_S3_ENDPOINT, value: {{ include "talk.s3Endpoint" . | quote }}}
- {name: INFINITETALK_S3_BUCKET, value: {{ .Values.s3.bucket | quote }}}
- {name: INFINITETALK_S3_REGION, value: {{ .Values.s3.region | default "us-east-1" | quote }}}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{- define "talk.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "talk.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "talk.secretVolume" -}}
- name: secrets
  secret:
    secretName: {{ .root.Values.existingSecret }}
    items:
      - {key: INFINITETALK_REDIS_URL, path: INFINITETALK_REDIS_URL}
      - {key: INFINITETALK_S3_ACCESS_KEY, path: INFINITETALK_S3_ACCESS_KEY}
      - {key: INFINITETALK_S3_SECRET_KEY, path: INFINITETALK_S3_SECRET_KEY}
      {{- if and .pulls .root.Values.modelCache.pull.tokenKey }}
      - {key: {{ .root.Values.modelCache.pull.tokenKey }}, path: HF_TOKEN}
      {{- end }}
{{- if .root.Values.tls.caConfigMap }}
- {name: ca, configMap: {name: {{ .root.Values.tls.caConfigMap }}, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- end }}

{{- define "talk.secretMounts" -}}
- {name: secrets, mountPath: /secrets, readOnly: true}
{{- if .Values.tls.caConfigMap }}
- {name: ca, mountPath: /ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "talk.modelClaim" -}}
{{- if .Values.modelCache.claim.create }}{{ .Release.Name }}-models{{ else }}{{ .Values.modelCache.existingClaim }}{{ end -}}
{{- end }}

{{- define "talk.pull" -}}
name: pull-{{ .variant }}
image: {{ include "talk.image" (dict "image" .root.Values.images.worker "root" .root) }}
imagePullPolicy: {{ .root.Values.images.worker.pullPolicy }}
command: ["infinitetalk", "models", "pull", "--variant", {{ .variant | quote }}, "--source", {{ .root.Values.modelCache.pull.source | quote }}]
securityContext: {{- include "talk.containerSecurity" .root | nindent 2 }}
env: {{- include "talk.env" .root | nindent 2 }}
  - {name: INFINITETALK_MODELS, value: /models}
resources: {{- toYaml .root.Values.modelCache.pull.resources | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: models, mountPath: /models}
  {{- include "talk.secretMounts" .root | nindent 2 }}
{{- end }}

{{/* What a pool's pods are made from: the arguments of talk.workerPod. */}}
{{- define "talk.workerPod" -}}
{{- $cache := .root.Values.modelCache }}
{{- $tellsCost := and .root.Values.deletionCost.enabled (not .pool.scaledJob) }}
{{- $models := and .pool.gpus (or $cache.nodePath (include "talk.modelClaim" .root)) }}
{{- include "talk.workerPodOf" (merge (dict "tellsCost" $tellsCost "models" $models) .) }}
{{- end }}

{{- define "talk.workerPodOf" -}}
metadata:
  labels: {{- include "talk.labels" $.root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    infinite-talk/role: worker
spec:
  {{- if .pool.scaledJob }}
  restartPolicy: OnFailure
  {{- end }}
  serviceAccountName: {{ $.root.Release.Name }}-worker
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ .pool.gracePeriodSeconds }}
  securityContext: {{- include "talk.podSecurity" $.root | nindent 4 }}
  {{- with $.root.Values.imagePullSecrets }}
  imagePullSecrets: {{- range . }}
    - name: {{ . }}
  {{- end }}
  {{- end }}
  {{- with .pool.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .pool.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pool.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pool.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  # One machine's end shall not end all of a pool, where there is a choice.
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "talk.selector" $.root | nindent 10 }}
          app.kubernetes.io/component: {{ .component }}
  {{- if and .pool.gpus $.root.Values.modelCache.nodePath }}
  initContainers:
    {{- range $.root.Values.modelCache.pull.variants }}
    - {{- include "talk.pull" (dict "root" $.root "variant" .) | nindent 6 }}
    {{- end }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "talk.image" (dict "image" (index $.root.Values.images .pool.image) "root" $.root) }}
      imagePullPolicy: {{ (index $.root.Values.images .pool.image).pullPolicy }}
      command: ["infinitetalk", "worker"]
      securityContext: {{- include "talk.containerSecurity" $.root | nindent 8 }}
      env: {{- include "talk.env" $.root | nindent 8 }}
        - {name: INFINITETALK_ENGINES, value: {{ .pool.engine | quote }}}
        - {name: INFINITETALK_WORKER_CLASSES, value: {{ .pool.jobClass | quote }}}
        - {name: INFINITETALK_WORKER_HOST, value: 0.0.0.0}
        - {name: INFINITETALK_WORKER_PORT, value: "3001"}
        {{- if .pool.scaledJob }}
        - {name: INFINITETALK_WORKER_JOBS, value: "1"}
        - {name: INFINITETALK_WORKER_IDLE_SECONDS, value: "60"}
        {{- end }}
        {{- if .tellsCost }}
        - {name: INFINITETALK_POD_DIR, value: /pod}
        {{- end }}
        {{- if .models }}
        - {name: INFINITETALK_MODELS, value: /models}
        {{- end }}
      ports:
        - {name: metrics, containerPort: 3001}
      # Loading an engine takes its time, and a pod that loads is alive: readiness says when it is done.
      startupProbe: {httpGet: {path: /livez, port: metrics}, periodSeconds: 5, failureThreshold: {{ ceil (divf .pool.startupSeconds 5) | int }}}
      livenessProbe: {httpGet: {path: /livez, port: metrics}, periodSeconds: 10, timeoutSeconds: 5}
      readinessProbe: {httpGet: {path: /readyz, port: metrics}, periodSeconds: 10, timeoutSeconds: 5}
      {{- $resources := deepCopy (.pool.resources | default dict) }}
      {{- if .pool.gpus }}
      {{- $resources = mergeOverwrite $resources (dict "limits" (dict "nvidia.com/gpu" .pool.gpus)) }}
      {{- end }}
      resources: {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- include "talk.secretMounts" $.root | nindent 8 }}
        {{- if .tellsCost }}
        - {name: pod, mountPath: /pod, readOnly: true}
        {{- end }}
        {{- if .pool.gpus }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
        {{- if .models }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {}}
    {{- include "talk.secretVolume" (dict "root" $.root "pulls" (and .pool.gpus $.root.Values.modelCache.nodePath)) | nindent 4 }}
    {{- if .tellsCost }}
    # What a busy worker tells Kubernetes with; the token is for its own pod's annotation, see rights.yaml.
    - name: pod
      projected:
        sources:
          - serviceAccountToken: {path: token, expirationSeconds: 3600}
          - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
          - downwardAPI:
              items:
                - {path: name, fieldRef: {fieldPath: metadata.name}}
                - {path: namespace, fieldRef: {fieldPath: metadata.namespace}}
    {{- end }}
    {{- if .pool.gpus }}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: 8Gi}}
    {{- end }}
    {{- if .models }}
    {{- if $.root.Values.modelCache.nodePath }}
    - {name: models, hostPath: {path: {{ $.root.Values.modelCache.nodePath | quote }}, type: DirectoryOrCreate}}
    {{- else }}
    - {name: models, persistentVolumeClaim: {claimName: {{ include "talk.modelClaim" $.root }}, readOnly: true}}
    {{- end }}
    {{- end }}
{{- end }}

{{- define "talk.triggers" -}}
# The stream's length is the number of jobs queued and running: a message goes when its job has ended.
- type: redis-streams
  metadata:
    address: {{ include "talk.redisAddress" $.root | quote }}
    stream: {{ printf "%s-%s-%s:stream" (get $.root.Values.settings "INFINITETALK_REDIS_PREFIX" | default "infinitetalk") .pool.engine .pool.jobClass }}
    streamLength: {{ .pool.jobsPerPod | quote }}
    enableTLS: {{ or $.root.Values.redis.tls (and $.root.Values.valkey.enabled $.root.Values.valkey.tlsSecret | not | not) | quote }}
  {{- if or $.root.Values.redis.passwordKey $.root.Values.tls.caConfigMap }}
  authenticationRef: {name: {{ $.root.Release.Name }}-redis}
  {{- end }}
{{- if $.root.Values.keda.prometheusAddress }}
- type: prometheus
  metadata:
    serverAddress: {{ $.root.Values.keda.prometheusAddress | quote }}
    query: max(infinitetalk_queue_oldest_wait_seconds{engine="{{ .pool.engine }}",job_class="{{ .pool.jobClass }}"})
    threshold: {{ $.root.Values.keda.waitSeconds | quote }}
{{- end }}
{{- end }}
