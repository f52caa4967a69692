"""The pruning methods: gates, budget, schedules. They need torch alone and know nothing of speech or ESPnet."""
