// Command jaeger is Jaeger for the tests: its own collector, memory store and query service in one process, with its own
// flags. Jaeger's all-in-one is the same and the drivers of five databases, which take three quarters of its build.
package main

import (
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
	"go.uber.org/zap"

	collector "github.com/jaegertracing/jaeger/cmd/collector/app"
	"github.com/jaegertracing/jaeger/cmd/collector/app/flags"
	query "github.com/jaegertracing/jaeger/cmd/query/app"
	"github.com/jaegertracing/jaeger/cmd/query/app/querysvc"
	"github.com/jaegertracing/jaeger/pkg/config"
	"github.com/jaegertracing/jaeger/pkg/healthcheck"
	"github.com/jaegertracing/jaeger/pkg/jtracer"
	"github.com/jaegertracing/jaeger/pkg/metrics"
	"github.com/jaegertracing/jaeger/pkg/telemetery"
	"github.com/jaegertracing/jaeger/pkg/tenancy"
	"github.com/jaegertracing/jaeger/plugin/metrics/disabled"
	"github.com/jaegertracing/jaeger/plugin/storage/memory"
)

func serve(v *viper.Viper) error {
	logger := zap.Must(zap.NewProduction())
	store := memory.NewFactory()
	store.InitFromViper(v, logger)
	if err := store.Initialize(metrics.NullFactory, logger); err != nil {
		return err
	}
	writer, err := store.CreateSpanWriter()
	if err != nil {
		return err
	}
	reader, err := store.CreateSpanReader()
	if err != nil {
		return err
	}
	dependencies, err := store.CreateDependencyReader()
	if err != nil {
		return err
	}
	intake, err := new(flags.CollectorOptions).InitFromViper(v, logger)
	if err != nil {
		return err
	}
	asking, err := new(query.QueryOptions).InitFromViper(v, logger)
	if err != nil {
		return err
	}
	health, tenants := healthcheck.New(), tenancy.NewManager(&intake.GRPC.Tenancy)

	spans := collector.New(&collector.CollectorParams{
		ServiceName:    "jaeger-collector",
		Logger:         logger,
		MetricsFactory: metrics.NullFactory,
		SpanWriter:     writer,
		HealthCheck:    health,
		TenancyMgr:     tenants,
	})
	if err := spans.Start(intake); err != nil {
		return err
	}
	defer spans.Close()

	noMetrics, err := disabled.NewMetricsReader()
	if err != nil {
		return err
	}
	service := querysvc.NewQueryService(reader, dependencies, *asking.BuildQueryServiceOptions(store, logger))
	answers, err := query.NewServer(service, noMetrics, asking, tenants, telemetery.Setting{
		Logger:         logger,
		TracerProvider: jtracer.NoOp().OTEL,
		Metrics:        metrics.NullFactory,
		ReportStatus:   telemetery.HCAdapter(health),
	})
	if err != nil {
		return err
	}
	if err := answers.Start(); err != nil {
		return err
	}
	defer answers.Close()

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	<-ended
	return nil
}

func main() {
	v := viper.New()
	command := &cobra.Command{
		Use:          "jaeger",
		SilenceUsage: true,
		RunE:         func(*cobra.Command, []string) error { return serve(v) },
	}
	config.AddFlags(v, command, flags.AddFlags, query.AddFlags, memory.AddFlags)
	if err := command.Execute(); err != nil {
		log.Fatal(err)
	}
}
