"""The gateway: quotes, scores, detections, alerts, their change log and the lake."""
