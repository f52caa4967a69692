"""The method, on torch alone: gates, budget, schedules. Knows nothing of speech or ESPnet."""
