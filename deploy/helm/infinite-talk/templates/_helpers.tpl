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

{{- define "talk.env" -}}
- {name: INFINITETALK_SECRETS_DIR, value: /secrets}
- {name: INFINITETALK_S3_ENDPOINT, value: {{ .Values.s3.endpoint | quote }}}
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
    secretName: {{ .Values.existingSecret }}
    items:
      - {key: INFINITETALK_REDIS_URL, path: INFINITETALK_REDIS_URL}
      - {key: INFINITETALK_S3_ACCESS_KEY, path: INFINITETALK_S3_ACCESS_KEY}
      - {key: INFINITETALK_S3_SECRET_KEY, path: INFINITETALK_S3_SECRET_KEY}
{{- end }}

{{- define "talk.workerPod" -}}
metadata:
  labels: {{- include "talk.labels" $.root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    infinite-talk/role: worker
spec:
  {{- if .pool.scaledJob }}
  restartPolicy: OnFailure
  {{- end }}
  serviceAccountName: {{ $.root.Release.Name }}
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
        {{- if and .pool.gpus $.root.Values.modelCache.existingClaim }}
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
        - {name: secrets, mountPath: /secrets, readOnly: true}
        {{- if .pool.gpus }}
        - {name: shm, mountPath: /dev/shm}
        {{- if $.root.Values.modelCache.existingClaim }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {}}
    {{- include "talk.secretVolume" $.root | nindent 4 }}
    {{- if .pool.gpus }}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: 8Gi}}
    {{- if $.root.Values.modelCache.existingClaim }}
    - {name: models, persistentVolumeClaim: {claimName: {{ $.root.Values.modelCache.existingClaim }}, readOnly: true}}
    {{- end }}
    {{- end }}
{{- end }}

{{- define "talk.triggers" -}}
# The stream's length is the number of jobs queued and running: a message goes when its job has ended.
- type: redis-streams
  metadata:
    address: {{ $.root.Values.redis.address | quote }}
    stream: {{ printf "%s-%s-%s:stream" (get $.root.Values.settings "INFINITETALK_REDIS_PREFIX" | default "infinitetalk") .pool.engine .pool.jobClass }}
    streamLength: {{ .pool.jobsPerPod | quote }}
    enableTLS: {{ $.root.Values.redis.tls | quote }}
  {{- if $.root.Values.redis.passwordKey }}
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
